"""A trainer that was stopped trains again as if it had never trained."""

import pytest
import torch
from helpers import TIMED, length_reward, log_of, make_trainer, tiny_profile

REWARDS = [length_reward, length_reward]


def without_times(rows):
    return [{k: v for k, v in row.items() if k not in TIMED} for row in rows]


def interrupt_pass(run, number):
    """Have Ctrl-C come in the middle of this forward pass of training."""
    compute_loss = run._compute_loss
    passes = []

    def compute_or_stop(model, inputs):
        passes.append(1)
        if len(passes) == number:
            raise KeyboardInterrupt
        return compute_loss(model, inputs)

    run._compute_loss = compute_or_stop


@pytest.mark.parametrize(
    "accumulation, save_steps, stopped_in",
    [(1, 50, 3), (2, 50, 6), (1, 2, 3), (2, 2, 6)],
    ids=["alone", "accumulated", "alone, saved", "accumulated, saved"],
)
def test_stopped_training_that_is_run_again_logs_what_an_undisturbed_one_logs(
    accumulation, save_steps, stopped_in, tmp_path, questions, retriever
):
    """In step 3: with saved steps it goes on from step 2, else it begins anew."""
    profile = tiny_profile(
        max_steps=4,
        save_steps=save_steps,
        per_device_train_batch_size=8 // accumulation,
        gradient_accumulation_steps=accumulation,
    )
    arguments = (questions, retriever, profile)
    undisturbed = make_trainer(tmp_path / "whole", *arguments, reward_funcs=REWARDS)
    stopped = make_trainer(tmp_path / "stopped", *arguments, reward_funcs=REWARDS)
    torch.manual_seed(0)
    undisturbed.train()
    torch.manual_seed(0)
    interrupt_pass(stopped, stopped_in)
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    stopped.train(resume_from_checkpoint=save_steps < 4)
    rows = without_times(log_of(tmp_path / "stopped"))
    assert rows == without_times(log_of(tmp_path / "whole"))
    lines = [
        (run.folder / "trajectories.jsonl").read_text()
        for run in (undisturbed, stopped)
    ]
    assert lines[0] == lines[1]
