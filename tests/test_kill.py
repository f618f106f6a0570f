"""Runs that are killed anywhere go on, and end as the undisturbed one."""

import time

import pytest
from kill_anywhere import PLACES, Killer

pytestmark = pytest.mark.slow
KILLS = 4


@pytest.fixture(scope="module")
def killer(tmp_path_factory):
    killer = Killer(tmp_path_factory.mktemp("kill") / "runs", seed=1)
    killer.undisturbed()
    return killer


def test_what_was_killed_goes_on_and_ends_as_the_undisturbed_run(killer):
    wanted = {"kills": KILLS, "resumed": KILLS, "equal": KILLS}
    assert killer.torment(KILLS) == [{"place": place, **wanted} for place in PLACES]


def test_where_the_watching_fails_no_run_is_left_to_write_on(killer, monkeypatch):
    def wait(ready, pause=0.05):
        while not killer.fresh(killer.out / "01.failed.ipynb"):
            time.sleep(pause)
        raise OSError("as if a file had gone")

    monkeypatch.setattr(killer, "wait", wait)
    with pytest.raises(OSError, match="as if"):
        killer.torment(1, ["step"])
    assert killer.run.poll() is not None
