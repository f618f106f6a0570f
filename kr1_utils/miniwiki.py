"""Owns the door to the fictional world in data/miniwiki/world.py; run it to write the
shipped one."""

import runpy
import sys
from importlib.util import module_from_spec, spec_from_file_location

from kr1_utils.profiles import REPO

_FOLDER = REPO / "data" / "miniwiki"
_SPEC = spec_from_file_location("kr1_utils.miniwiki.world", _FOLDER / "world.py")
_WORLD = sys.modules[_SPEC.name] = module_from_spec(_SPEC)
_SPEC.loader.exec_module(_WORLD)
globals().update(
    {name: value for name, value in vars(_WORLD).items() if not name.startswith("_")}
)

if __name__ == "__main__":
    runpy.run_path(str(_FOLDER / "make.py"), run_name="__main__")
