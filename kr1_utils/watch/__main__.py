"""`python -m kr1_utils.watch`: the same as `kr1 watch`."""

import sys

from kr1_utils.cli import main

if __name__ == "__main__":
    sys.exit(main(["watch", *sys.argv[1:]]))
