"""A step that runs out of memory loses no earlier step, and says what to lower."""

from dataclasses import asdict, replace

import pytest
import torch
from helpers import TINY, length_reward, log_of, make_trainer, tiny_profile

from kr1_utils import trainer
from kr1_utils.profiles import Limits
from kr1_utils.trainer import KnowledgeGRPOTrainer

MESSAGE = "CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has …"
REWARDS = [length_reward, length_reward]


class OutOfMemoryOnce(KnowledgeGRPOTrainer):
    """Has no memory left in step 2."""

    def _compute_loss(self, model, inputs):
        if self.state.global_step == 1:
            raise torch.OutOfMemoryError(MESSAGE)
        return super()._compute_loss(model, inputs)


def test_run_that_is_out_of_memory_says_what_to_lower_and_goes_on(
    tmp_path, questions, retriever
):
    profile = tiny_profile(max_steps=3, save_steps=50)
    settings = {"profile": asdict(profile)}
    state = tmp_path / "state"
    assert trainer.resume_point(state, settings) is None
    asked = []

    def advice(tokens):
        asked.append(tokens)
        return "Lower it."

    run = make_trainer(
        tmp_path,
        questions,
        retriever,
        profile,
        kind=OutOfMemoryOnce,
        reward_funcs=REWARDS,
        on_out_of_memory=advice,
    )
    said = r"step 2, .*Tried to allocate 2.00 GiB. .*\nLower it."
    with pytest.raises(RuntimeError, match=said) as error:
        run.train()
    assert f"of {run.longest} tokens" in str(error.value)
    assert asked == [max(run.longest, 32)]
    assert 20 < asked[0] <= TINY.limits.max_response_tokens

    settings["profile"]["limits"]["max_response_tokens"] = 200  # what it said to lower
    checkpoint = trainer.resume_point(state, settings)
    assert checkpoint.endswith("checkpoint-1")
    # Also if the run is stopped again before its next step.
    assert trainer.resume_point(state, settings) == checkpoint
    lower = replace(profile, limits=Limits(**settings["profile"]["limits"]))
    again = make_trainer(tmp_path, questions, retriever, lower, reward_funcs=REWARDS)
    again.train(resume_from_checkpoint=checkpoint)
    assert [row["step"] for row in log_of(tmp_path)] == ["1", "2", "3"]
    assert not (state / trainer.OUT_OF_MEMORY).exists()
    # Without that reason, other settings make another run.
    assert trainer.resume_point(state, {"profile": asdict(profile)}) is None
