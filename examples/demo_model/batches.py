"""Packs whole documents into rows of one length; attention never crosses from one to another.

A chunk of steps has its own seed, so a resumed run sees what an unbroken one would have seen.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import generate
import text
import torch
from tokenizers import Tokenizer
from torch import Tensor

CHUNK_STEPS = 100
_POOL = 64


@dataclass(frozen=True)
class Stage:
    """A part of the training: row length, rows per step, dialogue length, tokens to train."""

    length: int
    rows: int
    max_groups: int
    num_tokens: int

    @property
    def tokens_per_step(self) -> int:
        return self.length * self.rows

    @property
    def num_steps(self) -> int:
        return self.num_tokens // self.tokens_per_step

    @property
    def num_targets(self) -> int:
        """Predicted positions per step: a fixed number keeps the compiled graph's shapes."""
        return int(0.6 * self.tokens_per_step)


@dataclass(frozen=True)
class Batch:
    """`positions` index the flattened rows; the prediction there is `targets`."""

    ids: Tensor
    mask: Tensor
    positions: Tensor
    targets: Tensor
    weights: Tensor


Encoded = tuple[list[int], list[float]]


def steps(tokenizer: Tokenizer, stage: Stage, seed: int, first: int) -> Iterator[Batch]:
    """Batches from step `first` of the stage on, endlessly."""
    step = first
    while True:
        chunk = step // CHUNK_STEPS
        docs = generate.documents(seed * 1_000_003 + stage.length * 10_007 + chunk, stage.max_groups)
        rows = pack(text.encode(tokenizer, docs), stage.length)
        for index in range(chunk * CHUNK_STEPS, (chunk + 1) * CHUNK_STEPS):
            batch = [next(rows) for _ in range(stage.rows)]
            if index >= step:
                yield collate(batch, stage.length, stage.num_targets)
        step = (chunk + 1) * CHUNK_STEPS


def pack(docs: Iterator[Encoded], length: int) -> Iterator[list[Encoded]]:
    """Rows of whole documents, filled from a small pool; too long ones are left out."""
    pool: list[Encoded] = []
    while True:
        while len(pool) < _POOL:
            doc = next(docs)
            if len(doc[0]) <= length:
                pool.append(doc)
        row, room = [pool.pop(0)], length
        room -= len(row[0][0])
        for doc in sorted(pool, key=lambda doc: -len(doc[0])):
            if len(doc[0]) <= room:
                row.append(doc)
                room -= len(doc[0])
                pool.remove(doc)
        yield row


def collate(rows: list[list[Encoded]], length: int, num_targets: int) -> Batch:
    """Tensors of one step. Padding attends only to itself, so no softmax row is empty."""
    ids = torch.full((len(rows), length), text.PAD)
    weights = torch.zeros(len(rows), length)
    owners = torch.full((len(rows), length), -1)
    for r, row in enumerate(rows):
        start = 0
        for number, (doc_ids, doc_weights) in enumerate(row):
            end = start + len(doc_ids)
            ids[r, start:end] = torch.tensor(doc_ids)
            weights[r, start:end] = torch.tensor(doc_weights)
            owners[r, start:end] = number
            start = end
    visible = (owners[:, :, None] == owners[:, None, :]) & torch.ones(length, length).tril().bool()
    mask = torch.zeros(visible.shape, dtype=torch.bfloat16).masked_fill_(~visible, float("-inf"))
    predicted = weights.flatten().nonzero().flatten()[:num_targets]
    positions = torch.zeros(num_targets, dtype=torch.long)
    positions[: len(predicted)] = predicted - 1
    targets = torch.zeros(num_targets, dtype=torch.long)
    targets[: len(predicted)] = ids.flatten()[predicted]
    target_weights = torch.zeros(num_targets)
    target_weights[: len(predicted)] = weights.flatten()[predicted]
    return Batch(ids, mask[:, None], positions, targets, target_weights)
