"""The whole run: the notebooks 01–05 in order, headless, finished ones skipped."""

from kr1_utils.reproduce.stages import (
    STAGES,
    Request,
    Stage,
    is_complete,
    reproduce,
    run_stage,
    show,
    stamp,
)

__all__ = [
    "STAGES",
    "Request",
    "Stage",
    "is_complete",
    "reproduce",
    "run_stage",
    "show",
    "stamp",
]
