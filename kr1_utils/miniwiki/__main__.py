"""`python -m kr1_utils.miniwiki`: the same as `kr1 miniwiki`."""

import sys

from kr1_utils.cli import main

if __name__ == "__main__":
    sys.exit(main(["miniwiki", *sys.argv[1:]]))
