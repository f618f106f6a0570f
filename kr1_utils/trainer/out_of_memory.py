"""Owns what happens when memory runs out: steps are saved, and advice is given."""

from pathlib import Path

from kr1_utils.extras import missing
from kr1_utils.files import write_text
from kr1_utils.trainer.resume import OUT_OF_MEMORY

try:
    import torch
except ImportError:
    torch = missing("train")


class SavesWhenOutOfMemory:
    """Mixed into a trainer: a step that runs out of memory loses no earlier step.

    The trainer has `longest` (tokens of the longest response in this step), `limits`,
    and `on_out_of_memory`, which is given that length and returns advice, or is None.
    """

    def training_step(self, *inputs, **kwargs):
        """The step; if memory runs out, a checkpoint, a note and advice instead.

        Raises:
            RuntimeError: with the cause, and the settings to lower.
        """
        try:
            return super().training_step(*inputs, **kwargs)
        except torch.OutOfMemoryError as error:
            cause = str(error).splitlines()[0]
        # Here, because the failed step's tensors live until the except block ends.
        torch.cuda.empty_cache()
        self._save_earlier_steps()
        write_text(Path(self.args.output_dir) / OUT_OF_MEMORY, cause)
        raise RuntimeError(self._out_of_memory_message(cause))

    def _save_earlier_steps(self) -> None:
        """Save a checkpoint, unless there is one or no run could go on from it."""
        step = self.state.global_step
        note = Path(self.args.output_dir) / f"checkpoint-{step}" / "trainer_state.json"
        alone = self.accelerator.num_processes == 1  # others may wait in another call
        if alone and not note.exists() and not self._is_between_generations(step):
            self.optimizer.zero_grad()
            self._save_checkpoint(self.model, None)

    def _is_between_generations(self, step: int) -> bool:
        """Whether trajectories that are sampled already serve more steps after `step`:
        they are in no checkpoint."""
        micro_steps = step * self.args.gradient_accumulation_steps
        return micro_steps % micro_steps_per_generation(self.args) != 0

    def _out_of_memory_message(self, cause: str) -> str:
        advice = ""
        if self.on_out_of_memory:
            # A forecast is made for one turn at least.
            tokens = max(self.longest, self.limits.max_turn_tokens)
            advice = self.on_out_of_memory(tokens)
        return (
            f"Out of memory in step {self.state.global_step + 1}, at responses of"
            f" {self.longest} tokens: {cause} Lower max_response_tokens or"
            " tokens_per_micro_batch, and the run goes on from its last checkpoint."
            f"\n{advice}"
        )


def micro_steps_per_generation(args) -> int:
    """How many forward and backward passes one generation of trajectories serves."""
    return args.steps_per_generation * args.num_iterations
