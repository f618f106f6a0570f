"""Owns the lock of a folder in which a run trains: no two may write one log."""

from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from kr1_utils.files import display_path


class LocksItsFolder:
    """Mixed into a trainer that has a `folder`: only one trains in it at a time.

    The operating system ends a lock with the process that holds it, so that a run that
    crashed leaves none.
    """

    def train(self, *args, **kwargs):
        """Train, holding the folder's lock.

        Raises:
            OSError: if another run trains in the folder.
        """
        if not self.accelerator.is_main_process:
            return super().train(*args, **kwargs)
        with locked(self.folder):
            return super().train(*args, **kwargs)


@contextmanager
def locked(folder: Path):
    """Within it, no other process may train in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".training.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise OSError(
            f"Another run trains in {display_path(folder)}: wait until it has ended, or"
            " choose another folder in OUT."
        ) from None
    try:
        yield
    finally:
        lock.release()
