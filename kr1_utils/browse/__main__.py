"""`python -m kr1_utils.browse`: the same as `kr1 browse`."""

import sys

from kr1_utils.cli import main

if __name__ == "__main__":
    sys.exit(main(["browse", *sys.argv[1:]]))
