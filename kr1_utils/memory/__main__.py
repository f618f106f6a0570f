"""`python -m kr1_utils.memory`: the same as `kr1 memory`."""

import sys

from kr1_utils.cli import main

if __name__ == "__main__":
    sys.exit(main(["memory", *sys.argv[1:]]))
