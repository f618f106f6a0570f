"""No process outlives the one that started it."""

import subprocess
import sys

import pytest

CHILD = """
import time
from kr1_utils.processes import end_with_parent
end_with_parent()
print("ready", flush=True)
time.sleep(600)
"""
PARENT = f"""
import subprocess, sys
subprocess.run([sys.executable, "-c", {CHILD!r}])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has the call")
def test_a_process_ends_when_the_one_that_started_it_is_killed():
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout.readline() == "ready\n"
        parent.kill()
        # The child holds the other end of the pipe for as long as it lives.
        rest, _ = parent.communicate(timeout=20)
    assert rest == ""
