"""Helpers that the Knowledge-R1 notebooks share: one file, one subject."""

import os
import sys

__version__ = "0.2.0"

# PyTorch's threads spin while they wait. Where another process is busy they take the
# core that it needs, and training is many times slower. The variable is read when torch
# is loaded, so this is the one thing that importing the package changes.
if "torch" not in sys.modules:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
