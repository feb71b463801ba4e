"""The buffer in which one step's numbers travel from the host to the device: its layout at a padded size, and its ring.

One step is one run of int64 words (int32 columns lie in it two to a word), so it is copied once. The layout depends on
the padded sizes only; a step of one size always finds its columns at the same addresses of the device buffer.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from penstock_server.transfers import host_memory


@dataclass(frozen=True, slots=True)
class StepShape:
    """Padded sizes of a step. In a decode step every row is one token, so num_tokens = num_rows."""

    num_rows: int  # R
    num_tokens: int  # T
    num_samples: int  # S
    table_width: int  # entries of a row's block table that the step may read
    decode: bool
    any_mix: bool = False  # a mixed step that can be replayed with other rows, of which R is the most there can be

    @property
    def num_words(self) -> int:
        """int64 words of the step's columns."""
        return _bounds(self)[-1][1]

    @property
    def forward(self) -> "StepShape":
        """What the forward part depends on: the same for mixed steps that differ in their samples only."""
        return self if self.decode else replace(self, num_samples=0)


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
    decode_rows: NDArray[np.int32]  # [1], how many rows have one token; they come first


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
    decode_rows: torch.Tensor


class Staging:
    """A ring of host buffers, one deeper than the plans in flight, and the device buffer that steps read."""

    def __init__(self, max_shape: StepShape, num_entries: int, device: torch.device) -> None:
        words = max_shape.num_words
        ring = [host_memory(words, torch.int64, device) for _ in range(num_entries)]
        self._ring, self._host = [tensor for tensor, _ in ring], [array for _, array in ring]
        self._device = torch.zeros(words, dtype=torch.int64, device=device)
        self._views: dict[StepShape, DeviceColumns] = {}
        self.num_entries = num_entries

    def host(self, entry: int, shape: StepShape) -> HostColumns:
        """The columns of one entry of the ring at one size, with what the entry's last step left in them."""
        words = self._host[entry]
        int32, *int64 = (words[start:end] for start, end in _bounds(shape))
        int32, rows = int32.view(np.int32), shape.num_rows
        int64 += [int32[:rows], int32[rows : 2 * rows + 1], int32[2 * rows + 1 :]]
        return HostColumns(*int64)

    def upload(self, entry: int, shape: StepShape) -> None:
        """Copies a step to the device, in stream order."""
        words = shape.num_words
        self._device[:words].copy_(self._ring[entry][:words], non_blocking=True)

    def device(self, shape: StepShape) -> DeviceColumns:
        """The device columns at one size. Decode sizes are few and kept."""
        if columns := self._views.get(shape):
            return columns
        int32, *int64 = (self._device[start:end] for start, end in _bounds(shape))
        int32, rows = int32.view(torch.int32), shape.num_rows
        if shape.decode:
            int64[1] = int64[0]  # not only the same memory
        int64 += [int32[:rows], int32[rows : 2 * rows + 1], int32[2 * rows + 1 :]]
        columns = DeviceColumns(*int64)
        if shape.decode:
            self._views[shape] = columns
        return columns


def _bounds(shape: StepShape) -> list[tuple[int, int]]:
    """Word ranges of the int32 columns together, then of the int64 ones in the order of `HostColumns`.

    Samples come last: where the columns of the forward part lie does not depend on their number.
    """
    rows, tokens, samples = shape.num_rows, shape.num_tokens, shape.num_samples
    sizes = [rows + 1, rows] if shape.decode else [rows + 1, rows, tokens]
    sizes += [tokens] * 4 + [samples] * 3
    bounds, start = [], 0
    for size in sizes:
        bounds.append((start, start + size))
        start += size
    return [*bounds[:2], *bounds[1:]] if shape.decode else bounds
