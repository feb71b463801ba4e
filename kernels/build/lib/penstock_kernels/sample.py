"""The choice of a token: the best one, or one drawn by its probability.

Shapes: S rows (`draw`: at most SLICE_ROWS), V vocabulary.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from penstock_kernels.mass_cut import to_weights
from penstock_kernels.sample_workspace import SampleWorkspace


def host_rows(wanted: NDArray[np.bool_], device: torch.device) -> torch.Tensor | None:
    """The rows that a stage has to run on, int64 indices, or None for all of them.

    Always None on a device other than the CPU: an index would be one more copy to it, and rows cost less than copies
    there.
    """
    if device.type != "cpu" or wanted.all():
        return None
    return torch.from_numpy(np.flatnonzero(wanted))


def greedy_ref(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Token by token."""
    ids, bad = [], []
    for row in scores.tolist():
        best = max(row)
        bad.append(any(score != score for score in row) or best in (float("inf"), float("-inf")))
        ids.append(0 if bad[-1] else row.index(best))
    return torch.tensor(ids), torch.tensor(bad)


def greedy(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """ids int64 [S] of the largest of float32 scores [S, V], the lowest id among equals, and bad bool [S].

    A row is bad, and its id 0, if its maximum is not finite: it holds a NaN or +inf, or nothing but -inf.
    """
    return greedy_cpu(scores)


def greedy_cpu(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Plain torch, on any device."""
    best, ids = scores.max(1)
    bad = (best - best) != 0  # NaN where infinite; two operations instead of the four of `isfinite`
    return ids.masked_fill_(bad, 0), bad


def draw_ref(scores: torch.Tensor, uniforms: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """By the definition: the first token whose cumulative probability exceeds the row's number."""
    ids, bad = [], []
    for row, number in zip(scores.double(), uniforms.tolist(), strict=True):
        sums = torch.softmax(row, 0).cumsum(0)
        bad.append(bool(sums.isnan().any()))
        ids.append(0 if bad[-1] else int((sums > number * sums[-1]).int().argmax()))
    return torch.tensor(ids), torch.tensor(bad)


def draw(scores: torch.Tensor, uniforms: torch.Tensor, workspace: SampleWorkspace) -> tuple[torch.Tensor, torch.Tensor]:
    """One token per row of float32 scores [S, V] by its probability: ids int64 [S], and bad bool [S] as in `greedy`.

    uniforms: float64 [S] in [0, 1). Inverts the cumulative sum in vocabulary order, in integers of 2**-60: exact on
    every device, so equal scores and numbers give equal ids; a token of probability 0 is never chosen, nor one
    outside the vocabulary. Ids of bad rows are arbitrary tokens.
    """
    return draw_cpu(scores, uniforms, workspace)


def draw_cpu(
    scores: torch.Tensor, uniforms: torch.Tensor, workspace: SampleWorkspace
) -> tuple[torch.Tensor, torch.Tensor]:
    """Plain torch, on any device."""
    num_rows, vocab_size = scores.shape
    weights = to_weights(torch.softmax(scores, 1, out=workspace.probs[:num_rows]), workspace)
    sums = torch.cumsum(weights, 1, out=workspace.index[:num_rows])
    total = sums[:, -1:]
    # Below the total however it is rounded: a number is at most 1 - 2**-53, which takes more off than rounding adds.
    target = (uniforms[:, None] * total).long()
    ids = torch.searchsorted(sums, target, right=True).clamp_(max=vocab_size - 1)
    # NaN becomes 0 or the smallest integer, by the device: a whole row of it never sums to more than 0.
    return ids.squeeze(1), (total <= 0).squeeze(1)
