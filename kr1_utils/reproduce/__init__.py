"""The whole run: the notebooks 01–05 in order, headless, resumable."""

from kr1_utils.reproduce.stages import (
    NOTEBOOKS,
    REQUIRED_OUTPUTS,
    arguments,
    is_complete,
    reproduce,
    show,
)

__all__ = [
    "NOTEBOOKS",
    "REQUIRED_OUTPUTS",
    "arguments",
    "is_complete",
    "reproduce",
    "show",
]
