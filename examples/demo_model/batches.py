"""Packs whole documents into rows of one length; attention never crosses from one to another.

A chunk of steps has its own seed, so a resumed run sees what an unbroken one would have seen.
"""

import multiprocessing
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, fields

import generate
import numpy as np
import text
import torch
from tokenizers import Tokenizer
from torch import Tensor

# Tokens of one chunk, which is what a worker process makes at a time.
_CHUNK_TOKENS = 300_000
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
    def chunk_steps(self) -> int:
        return max(1, _CHUNK_TOKENS // self.tokens_per_step)

    @property
    def num_steps(self) -> int:
        return self.num_tokens // self.tokens_per_step

    @property
    def num_targets(self) -> int:
        """Predicted positions per step: a fixed number keeps the compiled graph's shapes."""
        return int(0.6 * self.tokens_per_step)


@dataclass(frozen=True)
class Batch:
    """One step. `positions` index the flattened rows; the prediction there is `targets`.

    `ids` and `owners` are [rows, length]; `owners` numbers the documents of a row, -1 is padding.
    Arrays rather than tensors, so that they travel between processes as plain bytes.
    """

    ids: np.ndarray
    owners: np.ndarray
    positions: np.ndarray
    targets: np.ndarray
    weights: np.ndarray

    def tensors(self, device: torch.device) -> "Tensors":
        arrays = (torch.from_numpy(getattr(self, field.name)) for field in fields(self))
        if device.type == "cuda":
            arrays = (array.pin_memory() for array in arrays)
        return Tensors(*(array.to(device, non_blocking=True) for array in arrays))


@dataclass(frozen=True)
class Tensors:
    """A batch on the device, in the same shapes."""

    ids: Tensor
    owners: Tensor
    positions: Tensor
    targets: Tensor
    weights: Tensor


Encoded = tuple[list[int], list[float]]


def steps(tokenizer: Tokenizer, stage: Stage, seed: int, first: int, num_workers: int = 0) -> Iterator[Batch]:
    """Batches from step `first` of the stage on, endlessly; the same with any number of workers."""
    skip = first % stage.chunk_steps
    for chunk in _chunks(tokenizer, stage, seed, first // stage.chunk_steps, num_workers):
        yield from chunk[skip:]
        skip = 0


def _chunks(tokenizer: Tokenizer, stage: Stage, seed: int, number: int, num_workers: int) -> Iterator[list[Batch]]:
    serialized = tokenizer.to_str()
    if not num_workers:
        while True:
            yield make_chunk(serialized, stage, seed, number)
            number += 1
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(num_workers, context)
    waiting: deque[Future[list[Batch]]] = deque()
    try:
        while True:
            while len(waiting) < 2 * num_workers:
                waiting.append(pool.submit(make_chunk, serialized, stage, seed, number))
                number += 1
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def make_chunk(serialized: str, stage: Stage, seed: int, number: int) -> list[Batch]:
    """The batches of one chunk of a stage, from a seed of its own."""
    docs = generate.documents(seed * 1_000_003 + stage.length * 10_007 + number, stage.max_groups)
    rows = pack(text.encode(Tokenizer.from_str(serialized), docs), stage.length)
    return [
        collate([next(rows) for _ in range(stage.rows)], stage.length, stage.num_targets)
        for _ in range(stage.chunk_steps)
    ]


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
    """One step of packed rows."""
    ids = np.full((len(rows), length), text.PAD)
    weights = np.zeros((len(rows), length), np.float32)
    owners = np.full((len(rows), length), -1)
    for r, row in enumerate(rows):
        start = 0
        for number, (doc_ids, doc_weights) in enumerate(row):
            end = start + len(doc_ids)
            ids[r, start:end] = doc_ids
            weights[r, start:end] = doc_weights
            owners[r, start:end] = number
            start = end
    predicted = np.flatnonzero(weights)[:num_targets]
    positions = np.zeros(num_targets, np.int64)
    positions[: len(predicted)] = predicted - 1
    targets = np.zeros(num_targets, np.int64)
    targets[: len(predicted)] = ids.reshape(-1)[predicted]
    target_weights = np.zeros(num_targets, np.float32)
    target_weights[: len(predicted)] = weights.reshape(-1)[predicted]
    return Batch(ids, owners, positions, targets, target_weights)
