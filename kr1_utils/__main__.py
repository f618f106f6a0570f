"""Owns `python -m kr1_utils`: the same as `kr1`."""

import sys

from kr1_utils.cli import main

if __name__ == "__main__":
    sys.exit(main())
