"""Owns processes: none outlives the one that started it."""

import ctypes
import sys


def end_with_parent() -> None:
    """Have Linux kill this process when the one that started it ends: no two may write
    to one place."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL
