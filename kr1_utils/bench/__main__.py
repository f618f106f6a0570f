"""`python -m kr1_utils.bench`: the same as `kr1 bench`."""

import sys

from kr1_utils.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", *sys.argv[1:]]))
