"""Warpers: temperature, top-k, top-p, min-p and typical-p, in the order in which transformers 5 applies them.

Each keeps the tokens that transformers' processor of that name keeps (`generation/logits_process.py`), on every
device, and turns the scores of all others into -inf. Where top-p cuts through equal scores, transformers keeps
whichever its sort left last; here the lowest ids stay. At least one token always stays.

Shapes: S rows (at most SLICE_ROWS), V vocabulary.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from math import inf

import numpy as np
import torch
from numpy.typing import NDArray

from penstock_kernels.mass_cut import PROBABILITY_SCALE, mass_cut, ordered_keys, to_weights
from penstock_kernels.sample_workspace import SampleWorkspace

# At this temperature two scores of 1 or more that differ at all differ by e**6 or more in probability; below it,
# scores / temperature could overflow, and the row would be lost instead of giving its best token.
MIN_TEMPERATURE = 1e-8

# Terms of the entropy as integers: their sum, at most log(V), stays far below 2**63.
_ENTROPY_SCALE = 2.0**50


class Warper(Enum):
    """The warpers, in the order of their application."""

    TEMPERATURE = auto()
    TOP_K = auto()
    TOP_P = auto()
    MIN_P = auto()
    TYPICAL_P = auto()


@dataclass(frozen=True, slots=True)
class WarpParams:
    """Per-row parameters on the device, all [S]. A neutral value leaves its row as it is, bit for bit."""

    temperature: torch.Tensor  # float32 >= MIN_TEMPERATURE; neutral: 1
    top_k: torch.Tensor  # int64, from `top_k_limits`
    top_p: torch.Tensor  # int64, from `top_p_limits`
    min_p: torch.Tensor  # float32; neutral: 0
    typical_p: torch.Tensor  # int64, from `typical_p_limits`

    def __getitem__(self, warper: Warper) -> torch.Tensor:
        return (self.temperature, self.top_k, self.top_p, self.min_p, self.typical_p)[warper.value - 1]


def top_k_limits(top_k: NDArray[np.int32], vocab_size: int) -> NDArray[np.int64]:
    """int64 [N]: how many of the lowest scores top-k may drop; 0 (off) drops none."""
    kept = np.where(top_k == 0, vocab_size, np.minimum(top_k, vocab_size))
    return (vocab_size - kept).astype(np.int64)


def top_p_limits(top_p: NDArray[np.float32]) -> NDArray[np.int64]:
    """int64 [N]: the mass that the lowest scores may have to be dropped, in units of 2**-60; 1 (off) drops none.

    transformers computes 1 - top_p in double precision from what the user wrote, and compares float32 sums with it.
    So the shortest decimal that rounds to the float32 is taken for what was written, and sums that would round to the
    bound count as equal to it. It matters where they meet exactly: equal scores, and a top_p that divides them.
    """
    written = top_p.astype(str).astype(np.float64)
    bound = (1.0 - written).astype(np.float32)
    rounds_down_to_it = (bound.astype(np.float64) + np.nextafter(bound, np.float32(2)).astype(np.float64)) / 2
    return np.where(top_p >= 1, -1, np.floor(rounds_down_to_it * PROBABILITY_SCALE)).astype(np.int64)


def typical_p_limits(typical_p: NDArray[np.float32]) -> NDArray[np.int64]:
    """int64 [N]: the most typical tokens stay until their mass exceeds this, in units of 2**-60; 1 (off): never.

    As with top-p, a sum that float32 rounds up to the mass counts as having reached it.
    """
    rounds_up_to_it = (typical_p.astype(np.float64) + np.nextafter(typical_p, np.float32(0)).astype(np.float64)) / 2
    limits = np.ceil(rounds_up_to_it * PROBABILITY_SCALE) - 1
    return np.where(typical_p >= 1, 2.0**62, limits).astype(np.int64)


def warp(
    scores: torch.Tensor,
    params: WarpParams,
    stages: Mapping[Warper, torch.Tensor | None],
    workspace: SampleWorkspace,
) -> None:
    """Warps float32 `scores` [S, V] in place; they must not be `workspace.subset`.

    stages: the warpers to run, each with the rows that it concerns (int64 indices; None: all rows). Rows whose
    parameters are neutral may be among them, so leaving them out changes nothing but the time taken.
    """
    warp_cpu(scores, params, stages, workspace)


def warp_ref(scores: torch.Tensor, params: WarpParams) -> None:
    """Row by row, by sorting, in double precision; every warper on every row."""
    descending_ids = torch.arange(scores.shape[1]).flip(0)
    for index, row in enumerate(scores):
        row.div_(params.temperature[index])
        row[row < row.sort().values[params.top_k[index]]] = -inf

        order = descending_ids[row[descending_ids].argsort(stable=True)]  # of equals the highest id first
        drop = torch.softmax(row.double(), 0)[order].cumsum(0) <= params.top_p[index] / PROBABILITY_SCALE
        drop[-1] = False
        row[order[drop]] = -inf

        probs = torch.softmax(row.double(), 0)
        row[probs < params.min_p[index] * probs.max()] = -inf

        probs, surprise = torch.softmax(row.double(), 0), -torch.log_softmax(row.double(), 0)
        distance = (surprise - (probs * surprise).nansum()).abs()
        ordered, order = distance.sort()
        reached = probs[order].cumsum(0) > params.typical_p[index] / PROBABILITY_SCALE
        if reached.any():
            row[distance > ordered[reached.int().argmax()]] = -inf


def warp_cpu(
    scores: torch.Tensor,
    params: WarpParams,
    stages: Mapping[Warper, torch.Tensor | None],
    workspace: SampleWorkspace,
) -> None:
    """Plain torch, on any device."""
    for warper in Warper:
        if warper not in stages:
            continue
        rows = stages[warper]
        if rows is None:
            _APPLY[warper](scores, params[warper], workspace)
            continue
        subset = torch.index_select(scores, 0, rows, out=workspace.subset[: rows.shape[0]])
        _APPLY[warper](subset, params[warper].index_select(0, rows), workspace)
        scores.index_copy_(0, rows, subset)


def _temperature(scores: torch.Tensor, temperature: torch.Tensor, workspace: SampleWorkspace) -> None:
    scores.div_(temperature[:, None])


def _top_k(scores: torch.Tensor, limit: torch.Tensor, workspace: SampleWorkspace) -> None:
    cut = mass_cut(ordered_keys(scores, workspace), workspace.one, limit, workspace)
    _keep(scores, torch.ge(scores, cut.value, out=_probs(scores, workspace)))  # equals of the k-th stay


def _top_p(scores: torch.Tensor, limit: torch.Tensor, workspace: SampleWorkspace) -> None:
    probs = _probs(scores, workspace)
    weights = to_weights(torch.softmax(scores, 1, out=probs), workspace)
    limit = torch.minimum(limit, weights.sum(1) - 1)  # something must stay, even at top_p = 0
    cut = mass_cut(ordered_keys(scores, workspace), weights, limit, workspace)
    # Of the tokens that have the score at the cut, what is left of the limit pays for dropping some. Counts up to
    # 2**24 are exact in float32.
    tied = torch.eq(scores, cut.value, out=probs)
    rank = torch.cumsum(tied, 1, out=_floats(workspace.digits, scores))
    num_tied = rank[:, -1:].long().clamp_(min=1)
    weight_of_one = (cut.weight // num_tied).clamp_(min=1)
    num_kept = (num_tied - cut.remaining // weight_of_one).float()
    kept = torch.le(rank.mul_(tied), num_kept, out=rank)
    _keep(scores, kept.mul_(torch.ge(scores, cut.value, out=probs)))


def _min_p(scores: torch.Tensor, min_p: torch.Tensor, workspace: SampleWorkspace) -> None:
    probs = torch.softmax(scores, 1, out=_probs(scores, workspace))
    bound = probs.amax(1, keepdim=True).mul_(min_p[:, None])
    _keep(scores, torch.ge(probs, bound, out=probs))


def _typical_p(scores: torch.Tensor, limit: torch.Tensor, workspace: SampleWorkspace) -> None:
    # Locally typical sampling (C. Meister et al., 2022): tokens by the distance of their surprise from the entropy.
    probs = torch.softmax(scores, 1, out=_probs(scores, workspace))
    surprise = torch.log_softmax(scores, 1, out=_floats(workspace.keys, scores))
    terms = torch.mul(surprise, probs, out=_floats(workspace.digits, scores))
    terms.nan_to_num_(nan=0.0).mul_(_ENTROPY_SCALE)  # 0 * -inf: a token that cannot come adds nothing
    sums = workspace.index[: scores.shape[0]].copy_(terms).sum(1, keepdim=True)
    distance = surprise.neg_().sub_(sums.float().mul_(-1 / _ENTROPY_SCALE)).abs_()
    weights = to_weights(probs, workspace)
    # A distance is not negative, so its bits as an integer have its order.
    cut = mass_cut(distance.view(torch.int32), weights, limit, workspace)
    _keep(scores, torch.le(distance, cut.value, out=probs))


_APPLY = {
    Warper.TEMPERATURE: _temperature,
    Warper.TOP_K: _top_k,
    Warper.TOP_P: _top_p,
    Warper.MIN_P: _min_p,
    Warper.TYPICAL_P: _typical_p,
}


def _probs(scores: torch.Tensor, workspace: SampleWorkspace) -> torch.Tensor:
    return workspace.probs[: scores.shape[0]]


def _floats(buffer: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """A buffer of 32-bit integers as float32 [S, V]."""
    return buffer[: scores.shape[0]].view(torch.float32)


def _keep(scores: torch.Tensor, kept: torch.Tensor) -> None:
    """Turns scores into -inf where `kept` (overwritten) is 0.0, and leaves those as they are where it is 1.0.

    In arithmetic, as torch's masked operations take ten times as long on a CPU: 1/1 - 1 = 0, 1/0 - 1 = inf.
    """
    scores.sub_(kept.reciprocal_().sub_(1.0))
