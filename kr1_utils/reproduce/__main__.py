"""Owns `python -m kr1_utils.reproduce`: the same as `kr1 run`."""

import sys

from kr1_utils.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:]]))
