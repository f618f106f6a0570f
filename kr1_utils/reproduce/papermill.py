"""Owns running one notebook headless, through papermill."""

import sys
import time
from pathlib import Path

import papermill
from papermill.exceptions import PapermillExecutionError

from kr1_utils.files import REPO, atomic_write, display_path

NOTEBOOKS = {
    "01": "01_build_index",
    "02": "02_agent_loop",
    "03": "03_train_grpo",
    "04": "04_evaluate",
    "05": "05_response_length",
}

# of a kernel; it names nothing
END_WITH_PARENT = "__import__('kr1_utils.processes').processes.end_with_parent()"


def run_notebook(number: str, parameters: dict, out: Path) -> float:
    """Execute one notebook into OUT/<number>.ipynb and return the seconds it took.

    Raises:
        RuntimeError: if a cell fails, naming notebook, cell and error; the notebook up
            to there stays as OUT/<number>.failed.ipynb.
    """
    source = REPO / "notebooks" / f"{NOTEBOOKS[number]}.ipynb"
    failed, started = out / f"{number}.failed.ipynb", time.perf_counter()
    try:
        papermill.execute_notebook(
            source,
            failed,
            parameters=parameters,
            progress_bar=False,
            cwd=source.parent,
            stderr_file=sys.stderr,  # where bars are drawn;
            coalesce_streams=True,  # what is saved holds their last state
            extra_arguments=[
                f"--IPKernelApp.exec_lines={END_WITH_PARENT}",
                "--IPKernelApp.log_level=40",
            ],
        )  # it warns of its sockets
        atomic_write(
            out / f"{number}.ipynb", lambda done: done.write(failed.read_bytes())
        )
    except PapermillExecutionError as error:
        raise RuntimeError(
            f"Stopped in notebook {NOTEBOOKS[number]}, cell {error.cell_index}: "
            f"{error.ename}: {error.evalue} (see {display_path(failed)})"
        ) from error
    except (
        RuntimeError,
        OSError,
    ) as error:  # the kernel was killed, or OUT can not be written
        raise RuntimeError(
            f"Stopped in notebook {NOTEBOOKS[number]}: {error}"
        ) from error
    failed.unlink()
    return time.perf_counter() - started
