"""Where a cumulative sum over sorted scores crosses a limit, without sorting: three passes of a radix select.

Sums are integers (counts, or probabilities as multiples of 2**-60), so they are exact: the answer depends neither on
the order of addition nor on the device, the batch or the number of threads. On one CPU core a sort of 49,152 floats
takes 3 to 4 ms, and this 0.15.

Shapes: S rows (at most SLICE_ROWS), V vocabulary. Building blocks of `warpers`, `sample` and `logprobs`.
"""

from dataclasses import dataclass

import torch

from penstock_kernels.sample_workspace import SampleWorkspace

# A probability as an integer. float32 probabilities of 2**-37 and above are represented exactly, and the sum of a row
# stays far below 2**63.
PROBABILITY_SCALE = 2.0**60

# Keys of -inf and +inf: all that is not NaN lies between them.
_LOWEST_KEY, _HIGHEST_KEY = -0x7F800001, 0x7F800000

# A key's 32 bits are three digits, highest first: 11 (signed), 11 and 10 bits.
_HIGH_SHIFT, _MIDDLE_SHIFT = 21, 10


@dataclass(frozen=True, slots=True)
class MassCut:
    """The smallest value whose cumulative weight, in ascending order of values, exceeds the limit. All [S, 1]."""

    value: torch.Tensor  # float32
    remaining: torch.Tensor  # int64, limit less the weight of all smaller values
    weight: torch.Tensor  # int64, weight of all entries that have this value


def ordered_keys(values: torch.Tensor, workspace: SampleWorkspace) -> torch.Tensor:
    """int32 [S, V] in `workspace.keys` with the order of the float32 `values` [S, V]; equal values have equal keys."""
    num_rows = values.shape[0]
    keys, signs = workspace.keys[:num_rows], workspace.digits[:num_rows]
    torch.add(values, 0.0, out=keys.view(torch.float32))  # -0.0 becomes 0.0: they are equal and must have one key
    torch.bitwise_right_shift(keys, 31, out=signs)
    return keys.bitwise_xor_(signs.bitwise_and_(0x7FFFFFFF))  # a negative float's magnitude bits, flipped, ascend


def to_weights(probs: torch.Tensor, workspace: SampleWorkspace) -> torch.Tensor:
    """int64 [S, V] in `workspace.weights`: probabilities float32 [S, V] (overwritten) in units of 2**-60."""
    return workspace.weights[: probs.shape[0]].copy_(probs.mul_(PROBABILITY_SCALE))


def mass_cut_ref(values: torch.Tensor, weights: torch.Tensor, limit: torch.Tensor) -> MassCut:
    """By sorting the values themselves."""
    weights = weights.expand(values.shape)
    ordered, order = values.sort(dim=1, stable=True)
    exceeds = weights.gather(1, order).cumsum(1) > limit[:, None]
    value = ordered.gather(1, exceeds.int().argmax(1, keepdim=True))
    value = value.masked_fill(~exceeds.any(1, keepdim=True), torch.inf).masked_fill(limit[:, None] < 0, -torch.inf)
    below, at = (weights * (values < value)).sum(1, keepdim=True), (weights * (values == value)).sum(1, keepdim=True)
    return MassCut(value, limit[:, None] - below, at)


def mass_cut(keys: torch.Tensor, weights: torch.Tensor, limit: torch.Tensor, workspace: SampleWorkspace) -> MassCut:
    """keys int32 [S, V]; weights int64 [S, V] or [1, 1], each row's sum below 2**63; limit int64 [S].

    A negative limit answers -inf and a limit that the row's sum does not exceed +inf, so that they cut nothing (the
    weight and the rest of the limit then mean nothing).
    """
    digits = workspace.digits[: keys.shape[0]]
    weights, limit = weights.expand(keys.shape), limit[:, None]

    torch.bitwise_right_shift(keys, _HIGH_SHIFT, out=digits)
    lowest = torch.full_like(limit, -1 << 10)
    prefix, _, _ = _find_digit(digits, lowest, 1 << 11, (weights, limit, workspace))

    torch.bitwise_right_shift(keys, _MIDDLE_SHIFT, out=digits)
    prefix, _, _ = _find_digit(digits, prefix << 11, 1 << 11, (weights, limit, workspace))

    # Only a prefix that no number has could make the next differences overflow.
    prefix.clamp_(_LOWEST_KEY >> _MIDDLE_SHIFT, _HIGHEST_KEY >> _MIDDLE_SHIFT)
    digits.copy_(keys)
    key, remaining, weight = _find_digit(digits, prefix << 10, 1 << 10, (weights, limit, workspace))

    key = key.clamp_(_LOWEST_KEY, _HIGHEST_KEY).int()
    return MassCut((key ^ ((key >> 31) & 0x7FFFFFFF)).view(torch.float32), remaining, weight)


def _find_digit(
    prefixes: torch.Tensor,
    first: torch.Tensor,
    num_values: int,
    sums_of: tuple[torch.Tensor, torch.Tensor, SampleWorkspace],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of the prefixes first .. first + num_values - 1, the one at which the sum crosses the limit.

    prefixes int32 [S, V] in `workspace.digits`, overwritten; first int64 [S, 1]. Returns, int64 [S, 1], the prefix,
    what is left of the limit there, and the prefix's own weight.
    """
    weights, limit, workspace = sums_of
    # One value more at either end gathers everything below and above.
    below = (first - 1).int()
    torch.maximum(prefixes, below, out=prefixes)
    torch.minimum(prefixes, below + (num_values + 1), out=prefixes)
    index = workspace.index[: prefixes.shape[0]].copy_(prefixes.sub_(below))
    histogram = weights.new_zeros((prefixes.shape[0], num_values + 2)).scatter_add_(1, index, weights)
    sums = histogram.cumsum(1)
    # The clamp is for limits that the sum does not exceed, and for rows of NaN, whose sums mean nothing.
    digit = torch.searchsorted(sums, limit, right=True).clamp_(max=num_values)
    weight = histogram.gather(1, digit)
    return first - 1 + digit, limit - sums.gather(1, digit) + weight, weight
