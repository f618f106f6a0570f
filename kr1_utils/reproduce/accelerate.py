"""Owns training in several processes: Accelerate launches 03's code."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import nbformat
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from kr1_utils.files import REPO, display_path, write_text
from kr1_utils.notebook import index_folder
from kr1_utils.processes import end_with_parent

SOURCE = REPO / "notebooks" / "03_train_grpo.ipynb"

HEAD = """# 03_train_grpo's code, for several processes: `accelerate launch` runs it.
from kr1_utils.processes import end_with_parent
end_with_parent()  # at once: a process must not outlive its launcher
import os, sys
import torch
if torch.cuda.is_available():
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
else:
    # Its own is "cpu:0", where no checkpoint can be loaded to.
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
if int(os.environ["RANK"]):
    sys.stdout = open(os.devnull, "w")  # the first one speaks for all
"""

ERROR = re.compile(r"(\[rank\d+\]: *)?([\w.]*(Error|Exception|Interrupt): .*)")


def script(parameters: dict) -> str:
    """The notebook's code, with these parameters."""
    notebook = parameterize_notebook(load_notebook_node(str(SOURCE)), parameters)
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return "\n\n\n".join([HEAD, *code]) + "\n"


def launch(
    number: str, parameters: dict, out: Path, processes: int, config: str, rows: int
) -> float:
    """Write OUT/03.py and have Accelerate run it in so many processes. What they print
    goes to the terminal and to OUT/03.log, and at the end into OUT/03.ipynb.

    Args:
        number: "03".
        config: a file of Accelerate's; without one, the processes train by DDP on this
            machine.
        rows: trajectories of a batch that each process samples.

    Returns:
        the seconds it took.

    Raises:
        RuntimeError: if a process fails, with its error.
    """
    if not index_folder(out).exists():  # several processes would build it at once
        raise RuntimeError(
            f"No index at {display_path(index_folder(out))}: run 01_build_index first."
        )
    started = time.perf_counter()
    own = parameters["OVERRIDES"] | {"per_device_train_batch_size": rows}
    write_text(out / "03.py", script({**parameters, "OVERRIDES": own}))
    how = (
        ["--config_file", str(Path(config).resolve())]
        if config
        # --multi_gpu also without GPUs
        else [
            "--multi_gpu",
            "--num_machines=1",
            "--mixed_precision=no",
            "--dynamo_backend=no",
            "--main_process_port=0",
        ]
    )
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        *how,
        f"--num_processes={processes}",
        str(out.resolve() / "03.py"),
    ]
    lines = []
    with (
        (out / "03.log").open("w", encoding="utf-8") as log,
        subprocess.Popen(
            command,
            cwd=SOURCE.parent,
            env={"MPLBACKEND": "Agg", **os.environ},
            text=True,
            errors="replace",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            preexec_fn=end_with_parent,
        ) as run,
    ):
        for line in run.stdout:
            lines.append(line)
            print(line, end="", file=log, flush=True)
            print(line, end="", flush=True)
    if run.returncode:
        errors = [found[2] for line in lines if (found := ERROR.match(line))]
        why = (errors or [line.strip() for line in lines[-1:]] or ["it said nothing"])[
            0
        ]
        raise RuntimeError(
            f"Stopped in notebook {SOURCE.stem}, in {processes} processes: {why} "
            f"(see {display_path(out / '03.log')})"
        )
    notebook = parameterize_notebook(load_notebook_node(str(SOURCE)), parameters)
    for cell in notebook.cells:  # what another run printed does not belong here
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    said = (
        f"Run as 03.py in {processes} processes, which"
        f" said:\n\n```\n{''.join(lines)}```"
    )
    notebook.cells.append(nbformat.v4.new_markdown_cell(said))
    write_text(out / "03.ipynb", nbformat.writes(notebook))
    return time.perf_counter() - started
