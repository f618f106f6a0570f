"""Owns micro-batches of at most so many tokens."""

import torch


def micro_batches(lengths: list[tuple[int, int]], budget: int) -> list[list[int]]:
    """Rows in parts of at most `budget` padded tokens, longest first; a longer row goes
    alone.

    Args:
        lengths: of the prompt, padded on the left, and of the completion, padded on the
            right, of each row.
    """
    parts: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -sum(lengths[i])):
        together = [lengths[j] for j in [*parts[-1], i]] if parts else []
        if together and len(together) * sum(map(max, zip(*together))) <= budget:
            parts[-1].append(i)
        else:
            parts.append([i])
    return parts


def rows_of(batch: dict, rows: list[int]) -> dict:
    """These rows of TRL's batch, without the padding that only the others need."""
    prompt = batch["prompt_mask"][rows].sum(1).max()
    completion = batch["completion_mask"][rows].sum(1).max().clamp(min=1)
    out = dict(batch)
    for name, value in batch.items():
        if (
            torch.is_tensor(value)
            and value.dim()
            and len(value) == len(batch["prompt_mask"])
        ):
            out[name] = value[rows]
            if value.dim() == 2:
                out[name] = (
                    out[name][:, -prompt:]
                    if name.startswith("prompt")
                    else out[name][:, :completion]
                )
    return out
