"""Owns running one notebook headless, through papermill."""

import logging
import sys
import time
from pathlib import Path

from kr1_utils.extras import missing
from kr1_utils.files import atomic_write, display_path

try:
    import papermill
    from papermill.exceptions import PapermillExecutionError
except ImportError:
    papermill = missing("notebooks")
    # `except` takes a tuple of exceptions too, and an empty one catches nothing.
    PapermillExecutionError = ()

# The kernel runs this line first. It leaves no name behind in the notebook.
END_WITH_PARENT = "__import__('kr1_utils.processes').processes.end_with_parent()"


def run_notebook(source: Path, parameters: dict, executed: Path) -> float:
    """Execute a notebook in its own folder and save it, whole, as `executed`.

    Args:
        source: the notebook.
        parameters: PROFILE, SEED, OUT, DATA and OVERRIDES; paths are absolute.
        executed: where it is saved with its outputs, for example OUT/01.ipynb.

    Returns:
        the seconds it took.

    Raises:
        RuntimeError: if a cell fails, naming notebook, cell and error; the notebook up
            to there stays beside `executed`, for example as OUT/01.failed.ipynb.
        ImportError: without the extra [notebooks].
    """
    started = time.perf_counter()
    failed = executed.with_suffix(".failed.ipynb")
    try:
        papermill.execute_notebook(
            source,
            failed,
            parameters=parameters,
            cwd=source.parent,
            # Our own bars are drawn on stderr; papermill's would fall among them.
            progress_bar=False,
            stderr_file=sys.stderr,
            # Of a bar that moved, only its last state is saved.
            coalesce_streams=True,
            extra_arguments=[
                f"--IPKernelApp.exec_lines={END_WITH_PARENT}",
                # A kernel that is interrupted complains of its sockets; errors of cells
                # come back without the log.
                "--IPKernelApp.log_level=50",
            ],
        )
        content = failed.read_bytes()
        atomic_write(executed, lambda file: file.write(content))
    except PapermillExecutionError as error:
        raise RuntimeError(
            f"Stopped in notebook {source.stem}, cell {error.cell_index}:"
            f" {error.ename}: {error.evalue} (see {display_path(failed)})"
        ) from error
    except KeyboardInterrupt:
        # The kernel ends with the run, and asyncio would tell of the task that waited
        # for it.
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        raise
    except (RuntimeError, OSError) as error:
        # The kernel was killed, or OUT cannot be written.
        raise RuntimeError(f"Stopped in notebook {source.stem}: {error}") from error
    failed.unlink()
    return time.perf_counter() - started
