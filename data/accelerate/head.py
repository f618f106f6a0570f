# The code of a notebook, as several processes run it.
import ctypes
import os
import signal
import sys

import torch

ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # on Linux, a process must not outlive its launcher
if int(os.environ["RANK"]):
    sys.stdout = open(os.devnull, "w")  # the first one speaks for all
if not torch.cuda.is_available():
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"  # else it is "cpu:0", where torch loads no checkpoint to
