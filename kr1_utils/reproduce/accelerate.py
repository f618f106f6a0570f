"""Owns training in several processes: Accelerate launches the training notebook's code.

For a run on more GPUs or machines, `OUT/03.py` is written from the code cells of
03_train_grpo.ipynb, so there is no second version of the training to keep up to date.
"""

import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from kr1_utils.extras import missing
from kr1_utils.files import display_path, write_text
from kr1_utils.notebook import index_folder
from kr1_utils.processes import end_with_parent
from kr1_utils.profiles import resolve

try:
    import nbformat
    from papermill.iorw import load_notebook_node
    from papermill.parameterize import parameterize_notebook
except ImportError:
    nbformat = missing("notebooks")
    load_notebook_node = missing("notebooks")
    parameterize_notebook = missing("notebooks")

HEAD = """\
# The code of 03_train_grpo.ipynb for several processes: `accelerate launch` runs it.
from kr1_utils.processes import end_with_parent

# At once: no process may outlive the one that launched it.
end_with_parent()

import os
import sys

import torch

if torch.cuda.is_available():
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
else:
    # Accelerate would choose "cpu:0", to which no checkpoint can be loaded.
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
if int(os.environ["RANK"]) > 0:
    # The first process speaks for all.
    sys.stdout = open(os.devnull, "w")
"""

# Without a file of settings: DDP on this machine. --multi_gpu also works on CPUs.
DDP = [
    "--multi_gpu",
    "--num_machines=1",
    "--mixed_precision=no",
    "--dynamo_backend=no",
    "--main_process_port=0",
]

ERROR = re.compile(r"(\[rank\d+\]: *)?([\w.]*(Error|Exception|Interrupt): .*)")


@dataclass(frozen=True)
class Spread:
    """How training is spread over processes.

    Attributes:
        processes: how many train together, on all machines.
        rows: trajectories of a batch that each of them samples.
        config: path of Accelerate's file of settings; "" is DDP on this machine.
    """

    processes: int
    rows: int
    config: str = ""


def script(source: Path, parameters: dict) -> str:
    """The notebook's code with these parameters, for `accelerate launch`."""
    notebook = _with_parameters(source, parameters)
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return "\n\n\n".join([HEAD, *code]) + "\n"


def launch(source: Path, parameters: dict, out: Path, spread: Spread) -> float:
    """Write OUT/03.py and have Accelerate run it.

    What the processes print goes to the terminal and to OUT/03.log, and at the end into
    OUT/03.ipynb.

    Args:
        source: the training notebook.
        parameters: PROFILE, SEED, OUT, DATA and OVERRIDES; paths are absolute.
        out: the folder OUT.
        spread: over how many processes, and how.

    Returns:
        the seconds it took.

    Raises:
        RuntimeError: if there is no index yet, or a process fails, with its error.
        ImportError: without the extra [notebooks].
    """
    index = index_folder(out)
    profile = resolve(parameters["PROFILE"], parameters["OVERRIDES"])
    if not profile.retriever and not index.exists():
        # Several processes would build it at once.
        raise RuntimeError(
            f"No index at {display_path(index)}: run 01_build_index first."
        )
    started = time.perf_counter()
    rows = {"per_device_train_batch_size": spread.rows}
    own_parameters = {**parameters, "OVERRIDES": {**parameters["OVERRIDES"], **rows}}
    write_text(out / "03.py", script(source, own_parameters))
    status, lines = _run(_command(out / "03.py", spread), source.parent, out / "03.log")
    if status != 0:
        raise RuntimeError(
            f"Stopped in notebook {source.stem}, in {spread.processes} processes:"
            f" {_reason(lines)} (see {display_path(out / '03.log')})"
        )
    _write_notebook(source, parameters, out / "03.ipynb", spread, lines)
    return time.perf_counter() - started


def _with_parameters(source: Path, parameters: dict):
    """The notebook with a cell of these parameters, as papermill injects it."""
    return parameterize_notebook(load_notebook_node(str(source)), parameters)


def _command(file: Path, spread: Spread) -> list[str]:
    """The command line that has Accelerate run `file`."""
    how = ["--config_file", spread.config] if spread.config else DDP
    return [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        *how,
        f"--num_processes={spread.processes}",
        str(file.resolve()),
    ]


def _run(command: list[str], folder: Path, log_file: Path) -> tuple[int, list[str]]:
    """Run a command in `folder`, and show and keep what it prints, line by line.

    Returns:
        its exit status and its lines.
    """
    lines = []
    with (
        log_file.open("w", encoding="utf-8") as log,
        subprocess.Popen(
            command,
            cwd=folder,
            env={"MPLBACKEND": "Agg", **os.environ},
            text=True,
            errors="replace",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            preexec_fn=end_with_parent,
        ) as process,
    ):
        for line in process.stdout:
            lines.append(line)
            print(line, end="", file=log, flush=True)
            print(line, end="", flush=True)
    return process.returncode, lines


def _reason(lines: list[str]) -> str:
    """Why a launch failed: the first error that was printed, else the last line."""
    for line in lines:
        error = ERROR.match(line)
        if error:
            return error[2]
    return lines[-1].strip() if lines else "it said nothing"


def _write_notebook(
    source: Path, parameters: dict, file: Path, spread: Spread, lines: list[str]
) -> None:
    """Save the notebook with what the processes printed, instead of its old outputs."""
    notebook = _with_parameters(source, parameters)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
            cell.execution_count = None
    printed = "".join(lines)
    text = (
        f"Run as 03.py in {spread.processes} processes, which said:"
        f"\n\n```\n{printed}```"
    )
    notebook.cells.append(nbformat.v4.new_markdown_cell(text))
    write_text(file, nbformat.writes(notebook))
