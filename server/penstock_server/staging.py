"""The buffer in which one step's numbers travel from the host to the device: its layout at a padded size, and its ring.

One step is one run of int64 words (int32 columns lie in it two to a word), so it is copied once. The layout depends on
the padded sizes only; a step of one size always finds its columns at the same addresses of the device buffer.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class StepShape:
    """Padded sizes of a step. In a decode step every row is one token, so num_tokens = num_rows."""

    num_rows: int  # R
    num_tokens: int  # T
    num_samples: int  # S
    table_width: int  # entries of a row's block table that the step may read
    decode: bool

    @property
    def num_words(self) -> int:
        """int64 words of the step's columns."""
        per_row_tokens = 0 if self.decode else self.num_tokens
        return self.num_rows + per_row_tokens + 4 * self.num_tokens + 3 * self.num_samples + self.num_rows + 1


@dataclass(frozen=True, slots=True)
class HostColumns:
    """Views into one entry of the ring, written by the launching thread."""

    row_seats: NDArray[np.int64]  # [R]
    token_seats: NDArray[np.int64]  # [T]; the same memory as row_seats in a decode step
    feed_ids: NDArray[np.int64]  # [T], -1: the seat's last sampled token
    positions: NDArray[np.int64]  # [T]
    table_entries: NDArray[np.int64]  # [T], position // tokens_per_block
    block_offsets: NDArray[np.int64]  # [T], position % tokens_per_block
    logits_index: NDArray[np.int64]  # [S]
    sample_seats: NDArray[np.int64]  # [S]
    sample_positions: NDArray[np.int64]  # [S]
    seq_lens: NDArray[np.int32]  # [R]
    query_starts: NDArray[np.int32]  # [R + 1]


@dataclass(frozen=True, slots=True)
class DeviceColumns:
    """The same columns on the device."""

    row_seats: torch.Tensor
    token_seats: torch.Tensor
    feed_ids: torch.Tensor
    positions: torch.Tensor
    table_entries: torch.Tensor
    block_offsets: torch.Tensor
    logits_index: torch.Tensor
    sample_seats: torch.Tensor
    sample_positions: torch.Tensor
    seq_lens: torch.Tensor
    query_starts: torch.Tensor


class Staging:
    """A ring of host buffers, one deeper than the plans in flight, and the device buffer that steps read."""

    def __init__(self, max_shape: StepShape, num_entries: int, device: torch.device) -> None:
        pinned = device.type == "cuda"
        words = max_shape.num_words
        self._ring = [torch.zeros(words, dtype=torch.int64, pin_memory=pinned) for _ in range(num_entries)]
        self._host = [entry.numpy() for entry in self._ring]
        self._device = torch.zeros(words, dtype=torch.int64, device=device)
        self._views: dict[StepShape, DeviceColumns] = {}
        self.num_entries = num_entries

    def host(self, entry: int, shape: StepShape) -> HostColumns:
        """The columns of one entry of the ring at one size, with what the entry's last step left in them."""
        words = self._host[entry]
        columns = [words[start:end] for start, end in _bounds(shape)]
        int32 = columns.pop().view(np.int32)
        rows = shape.num_rows
        columns += [int32[:rows], int32[rows : 2 * rows + 1]]
        return HostColumns(*columns)

    def upload(self, entry: int, shape: StepShape) -> None:
        """Copies a step to the device, in stream order."""
        words = shape.num_words
        self._device[:words].copy_(self._ring[entry][:words], non_blocking=True)

    def device(self, shape: StepShape) -> DeviceColumns:
        """The device columns at one size. Decode sizes are few and kept."""
        if columns := self._views.get(shape):
            return columns
        tensors = [self._device[start:end] for start, end in _bounds(shape)]
        int32 = tensors.pop().view(torch.int32)
        rows = shape.num_rows
        tensors += [int32[:rows], int32[rows : 2 * rows + 1]]
        columns = DeviceColumns(*tensors)
        if shape.decode:
            self._views[shape] = columns
        return columns


def _bounds(shape: StepShape) -> list[tuple[int, int]]:
    """Word ranges of the int64 columns in the order of `HostColumns`, then that of the int32 ones together."""
    rows, tokens, samples = shape.num_rows, shape.num_tokens, shape.num_samples
    sizes = [rows] if shape.decode else [rows, tokens]
    sizes += [tokens] * 4 + [samples] * 3 + [rows + 1]
    bounds, start = [], 0
    for size in sizes:
        bounds.append((start, start + size))
        start += size
    return [bounds[0], *bounds] if shape.decode else bounds
