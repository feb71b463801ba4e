"""Edits of logits before any warper: biases and bans, repetition penalty, frequency and presence penalties.

A lane's history is one int32 per token of the vocabulary: bit 0 says that the prompt holds the token, the bits above
count how often it was generated.

Shapes: S rows (at most SLICE_ROWS), V vocabulary, L lanes, E edits a row. All functions work in place. A NaN stays a
NaN through all of them, even where its token is banned, so that the row is found bad in the end.
"""

import torch

from penstock_kernels.sample_workspace import SampleWorkspace

IN_PROMPT = 1
ONE_GENERATED = 2

# What pads a row of edits: x + -0.0 is x for every x, -0.0 included; with 0.0 it would not be.
NEUTRAL_EDIT = -0.0


def add_at_ref(scores: torch.Tensor, ids: torch.Tensor, values: torch.Tensor) -> None:
    """Adds one value after another."""
    for row in range(ids.shape[0]):
        for edit in range(ids.shape[1]):
            scores[row, ids[row, edit]] += values[row, edit]


def add_at(scores: torch.Tensor, rows: torch.Tensor | None, ids: torch.Tensor, values: torch.Tensor) -> None:
    """Adds values float32 [R, E] at ids int64 [R, E] of the R `rows` (int64 [R]; None: all) of float32 scores [S, V].

    -inf bans an id. Ids that occur twice in a row are added in no particular order.
    """
    add_at_cpu(scores, rows, ids, values)


def add_at_cpu(scores: torch.Tensor, rows: torch.Tensor | None, ids: torch.Tensor, values: torch.Tensor) -> None:
    """Plain torch, on any device."""
    num_rows, vocab_size = scores.shape
    if rows is None:
        rows = torch.arange(num_rows, device=scores.device)
    scores.view(-1).scatter_add_(0, (ids + rows[:, None] * vocab_size).view(-1), values.view(-1))


def penalize_repetition_ref(scores: torch.Tensor, history: torch.Tensor, penalty: torch.Tensor) -> None:
    """Token by token."""
    for row, token in (history != 0).nonzero().tolist():
        score = scores[row, token]
        scores[row, token] = score * penalty[row] if score < 0 else score / penalty[row]


def penalize_repetition(
    scores: torch.Tensor, history: torch.Tensor, penalty: torch.Tensor, workspace: SampleWorkspace
) -> None:
    """Makes tokens of the prompt or the answer less likely (N. S. Keskar et al., "CTRL", 2019, section 4.1, with the
    sign rule of transformers' RepetitionPenaltyLogitsProcessor).

    scores float32 [S, V]; history int32 [S, V], must not be `workspace.keys`; penalty float32 [S] > 0, neutral: 1.
    """
    penalize_repetition_cpu(scores, history, penalty, workspace)


def penalize_repetition_cpu(
    scores: torch.Tensor, history: torch.Tensor, penalty: torch.Tensor, workspace: SampleWorkspace
) -> None:
    """Plain torch, on any device."""
    num_rows = scores.shape[0]
    # The factor of each token, 1 where the history has none. In arithmetic, as torch's masked operations take ten
    # times as long on a CPU; the sums below have one term that is 0, so they are exact.
    seen, factor = workspace.probs[:num_rows], workspace.keys[:num_rows].view(torch.float32)
    torch.gt(seen.copy_(history), 0, out=seen)
    torch.neg(seen, out=factor).add_(1.0).add_(seen.mul_(penalty[:, None]))
    negative = torch.clamp(scores, max=0.0, out=seen).mul_(factor)
    scores.clamp_(min=0.0).div_(factor).add_(negative)


def penalize_counts_ref(
    scores: torch.Tensor, history: torch.Tensor, frequency: torch.Tensor, presence: torch.Tensor
) -> None:
    """Token by token."""
    for row, token in (history >= ONE_GENERATED).nonzero().tolist():
        count = history[row, token] // ONE_GENERATED
        scores[row, token] -= count * frequency[row]
        scores[row, token] -= presence[row]


def penalize_counts(
    scores: torch.Tensor,
    history: torch.Tensor,
    frequency: torch.Tensor,
    presence: torch.Tensor,
    workspace: SampleWorkspace,
) -> None:
    """score - count * frequency - (count > 0) * presence, over generated tokens only (OpenAI's API reference).

    scores float32 [S, V]; history int32 [S, V], overwritten; frequency and presence float32 [S], neutral: 0.
    """
    penalize_counts_cpu(scores, history, frequency, presence, workspace)


def penalize_counts_cpu(
    scores: torch.Tensor,
    history: torch.Tensor,
    frequency: torch.Tensor,
    presence: torch.Tensor,
    workspace: SampleWorkspace,
) -> None:
    """Plain torch, on any device."""
    num_rows = scores.shape[0]
    counts, amount = history.bitwise_right_shift_(1), workspace.probs[:num_rows]
    scores.sub_(amount.copy_(counts).mul_(frequency[:, None]))
    generated = torch.gt(amount.copy_(counts), 0, out=amount)
    scores.sub_(generated.mul_(presence[:, None]))


def count_tokens_ref(history: torch.Tensor, lanes: torch.Tensor, ids: torch.Tensor, counted: torch.Tensor) -> None:
    """Row by row."""
    for lane, token, good in zip(lanes.tolist(), ids.tolist(), counted.tolist(), strict=True):
        history[lane, token] += ONE_GENERATED if good else 0


def count_tokens(history: torch.Tensor, lanes: torch.Tensor, ids: torch.Tensor, counted: torch.Tensor) -> None:
    """Counts each row's sampled id in its lane: history int32 [L, V]; lanes, ids int64 [S]; counted bool [S]."""
    count_tokens_cpu(history, lanes, ids, counted)


def count_tokens_cpu(history: torch.Tensor, lanes: torch.Tensor, ids: torch.Tensor, counted: torch.Tensor) -> None:
    """Plain torch, on any device."""
    history.view(-1).scatter_add_(0, lanes * history.shape[1] + ids, counted.int().mul_(ONE_GENERATED))
