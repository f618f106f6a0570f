"""Owns the door to the side-by-side measurements in data/reference/bench.py."""

import runpy

from kr1_utils.profiles import REPO

_BENCH = runpy.run_path(str(REPO / "data" / "reference" / "bench.py"))
main, machine = _BENCH["main"], _BENCH["machine"]

if __name__ == "__main__":
    main()
