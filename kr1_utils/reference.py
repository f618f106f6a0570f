"""Owns what data/reference keeps of a run.

`python -m kr1_utils.reference OUT FOLDER` copies it, for example from data/runs/tiny to
data/reference/tiny/seed42. With `--adapter BASE` it copies an adapter of the model BASE
alone, in half of its bytes, from OUT/checkpoint.
"""

import argparse
import gzip
import json
import shutil
from pathlib import Path

from kr1_utils.corpus import read_rows
from kr1_utils.extras import missing
from kr1_utils.files import atomic_write, display_path, write_jsonl, write_text

try:
    import torch
    from safetensors.torch import load_file, save
except ImportError:
    torch = load_file = save = missing("train")

# Of every run; what is not there is left out.
TABLES = ("train_log.csv", "scores.csv", "summary.json", "decisions.csv", "ladder.csv")
LOGS = ("predictions.jsonl", "decisions.jsonl")
# Of the run that notebooks show until there is one of the reader's own.
SHOWN = ("predictions_before.jsonl", "trajectories.jsonl")

# What was read, which the corpus has too.
LEFT_OUT = ("observations",)

# The adapter of a run names its model by an absolute path.
BASE_MODEL = "data/tiny-lm"


def keep(out: Path, folder: Path, shown: bool = False) -> list[Path]:
    """Copy what is kept of a run.

    Args:
        out: the folder of the run.
        folder: of data/reference.
        shown: also keep the adapter, the trajectories, the ladder's answers and the
            predictions before training.

    Returns:
        The files.

    Raises:
        OSError: if one cannot be read or written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in TABLES:
        if (out / name).exists():
            shutil.copyfile(out / name, folder / name)
    for name in (*LOGS, *SHOWN) if shown else LOGS:
        if (out / name).exists():
            write_jsonl(folder / name, _rows(out / name))
    if shown:
        _keep_ladder(out / "ladder.jsonl", folder / "ladder.jsonl.gz")
        _keep_adapter(out / "checkpoint", folder / "checkpoint")
    return sorted(file for file in folder.rglob("*") if file.is_file())


def _rows(file: Path) -> list[dict]:
    return [
        {key: value for key, value in row.items() if key not in LEFT_OUT}
        for row in read_rows(file)
    ]


def _keep_ladder(source: Path, target: Path) -> None:
    packed = gzip.compress(source.read_bytes(), mtime=0)
    atomic_write(target, lambda file: file.write(packed))


def _keep_adapter(source: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("README.md"))
    _name_base_model(target, BASE_MODEL)


def keep_adapter(source: Path, target: Path, base_model: str) -> None:
    """Copy an adapter in bfloat16, and without the tokenizer beside it: its model has
    the same one.

    Args:
        source: the adapter's folder; its weights are float32.
        base_model: the model's id on the hub.
    """
    target.mkdir(parents=True, exist_ok=True)
    weights = load_file(source / "adapter_model.safetensors")
    rounded = {name: weight.to(torch.bfloat16) for name, weight in weights.items()}
    packed = save(rounded, metadata={"format": "pt"})
    weights_file = target / "adapter_model.safetensors"
    atomic_write(weights_file, lambda file: file.write(packed))
    shutil.copyfile(source / "adapter_config.json", target / "adapter_config.json")
    _name_base_model(target, base_model)


def _name_base_model(adapter: Path, name: str) -> None:
    settings = adapter / "adapter_config.json"
    config = json.loads(settings.read_text())
    config["base_model_name_or_path"] = name
    write_text(settings, json.dumps(config, indent=2) + "\n")


def _main() -> None:
    parser = argparse.ArgumentParser(
        description=keep.__doc__.split("\n", maxsplit=1)[0]
    )
    parser.add_argument("out", type=Path, help="the folder of the run")
    parser.add_argument("folder", type=Path, help="of data/reference")
    parser.add_argument(
        "--shown", action="store_true", help="keep what notebooks show too"
    )
    parser.add_argument(
        "--adapter", metavar="BASE", help="keep only the adapter, of this model"
    )
    words = parser.parse_args()
    if words.adapter:
        keep_adapter(words.out / "checkpoint", words.folder, words.adapter)
        return
    for file in keep(words.out, words.folder, words.shown):
        print(display_path(file))


if __name__ == "__main__":
    _main()
