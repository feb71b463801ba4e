"""Log-probabilities of chosen tokens and of the best ones, for rows that asked.

Shapes: S rows (at most SLICE_ROWS), V vocabulary, K best tokens.
"""

from typing import NamedTuple

import torch

from penstock_kernels.mass_cut import ordered_keys
from penstock_kernels.sample_workspace import SampleWorkspace

_LOW_WORD = 0xFFFFFFFF


class Logprobs(NamedTuple):
    """Natural logarithms; -inf for tokens that cannot come."""

    chosen: torch.Tensor  # float32 [S]
    top_ids: torch.Tensor  # int64 [S, K], best first, the lower id first among equals
    top: torch.Tensor  # float32 [S, K]


def logprobs_ref(scores: torch.Tensor, ids: torch.Tensor, num_top: int) -> Logprobs:
    """By a stable sort, in double precision."""
    logs = torch.log_softmax(scores.double(), 1)
    top_ids = scores.argsort(dim=1, descending=True, stable=True)[:, :num_top]
    return Logprobs(logs.gather(1, ids[:, None])[:, 0].float(), top_ids, logs.gather(1, top_ids).float())


def logprobs(scores: torch.Tensor, ids: torch.Tensor, num_top: int, workspace: SampleWorkspace) -> Logprobs:
    """Of float32 scores [S, V] and the chosen ids int64 [S]; K = num_top <= V, which may be 0.

    The first k of K are what K = k would have given, so a row's answer does not depend on what other rows ask for.
    """
    return logprobs_cpu(scores, ids, num_top, workspace)


def logprobs_cpu(scores: torch.Tensor, ids: torch.Tensor, num_top: int, workspace: SampleWorkspace) -> Logprobs:
    """Plain torch, on any device."""
    num_rows, vocab_size = scores.shape
    logs = torch.log_softmax(scores, 1, out=workspace.probs[:num_rows])
    chosen = logs.gather(1, ids[:, None]).squeeze(1)
    if num_top == 0:
        return Logprobs(chosen, ids.new_empty((num_rows, 0)), chosen.new_empty((num_rows, 0)))
    # topk leaves open which of equal scores it takes; with the id in the low word there are none.
    keys = workspace.weights[:num_rows].copy_(ordered_keys(scores, workspace)).bitwise_left_shift_(32)
    keys.add_(torch.arange(vocab_size - 1, -1, -1, device=scores.device))
    top_ids = (vocab_size - 1) - keys.topk(num_top, dim=1).values.bitwise_and_(_LOW_WORD)
    return Logprobs(chosen, top_ids, logs.gather(1, top_ids))
