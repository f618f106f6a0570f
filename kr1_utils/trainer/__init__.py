"""Training: TRL's GRPOTrainer with the agent loop as its rollout."""

from kr1_utils.trainer.callbacks import LOG_COLUMNS
from kr1_utils.trainer.decision_log import DecisionLog
from kr1_utils.trainer.grpo import FIELDS, KnowledgeGRPOTrainer, grpo_config
from kr1_utils.trainer.one_group import loss_of_group
from kr1_utils.trainer.resume import OUT_OF_MEMORY, resume_point
from kr1_utils.trainer.run import gathered_weights, run
from kr1_utils.trainer.sft import DemonstrationTrainer
from kr1_utils.trainer.token_budget import LOSS_WEIGHTING, micro_batches, rows_of

__all__ = [
    "FIELDS",
    "DecisionLog",
    "DemonstrationTrainer",
    "LOG_COLUMNS",
    "LOSS_WEIGHTING",
    "OUT_OF_MEMORY",
    "KnowledgeGRPOTrainer",
    "gathered_weights",
    "grpo_config",
    "loss_of_group",
    "micro_batches",
    "resume_point",
    "rows_of",
    "run",
]
