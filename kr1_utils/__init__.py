"""Knowledge-R1 in notebooks: what its notebooks and its command line are made of."""

import os
import sys

__version__ = "0.2.0"

# PyTorch's threads spin while they wait. Where another process is busy, they take the
# core that it needs, and training is many times slower. The variable is read when torch
# is loaded, so it must be set now. Nothing else changes when the package is imported.
if "torch" not in sys.modules:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
