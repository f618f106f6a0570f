"""Owns processes: none outlives the one that started it."""

import ctypes
import signal
import sys

# A process's own signal for its parent's end, from Linux's <sys/prctl.h>.
PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Have Linux kill this process when the one that started it ends.

    A run that is killed and started again would else write to the same files as the
    processes it left behind. Other systems have no such call, and nothing happens.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
