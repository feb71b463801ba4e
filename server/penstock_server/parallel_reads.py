"""Reads large matrices of a checkpoint onto a GPU with several threads at once.

A copy from a mapped file runs on one thread, page by page, and the bus takes several times as much. Here each thread
reads a piece of the file into pinned memory, from where it travels while the thread reads the next one.
"""

import os
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import torch

from penstock_server.transfers import host_memory

# More threads than these gain nothing once the bus is full.
_MAX_THREADS = 8
_PIECE_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class StoredMatrix:
    """Neighbouring rows of a matrix in a file, and the columns of them that are wanted; all in bytes."""

    path: Path
    offset: int  # of the first of the rows
    num_rows: int
    row_bytes: int
    columns: slice


class ParallelReads:
    """Threads and pinned buffers of one load. Belongs to the thread that loads."""

    def __init__(self, device: torch.device, num_threads: int | None = None, piece_bytes: int = _PIECE_BYTES) -> None:
        """`device`: where matrices are wanted; buffers are pinned unless it is a CPU."""
        self.piece_bytes = piece_bytes
        self._device = device
        num_threads = num_threads or min(_MAX_THREADS, len(os.sched_getaffinity(0)))
        # A thread begins on the first device: leaving a stream of another, it would open a context there.
        own_device = (torch.cuda.set_device, (device,)) if device.type == "cuda" else (None, ())
        self._pool = ThreadPoolExecutor(num_threads, "read-weights", *own_device)
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._free: SimpleQueue[_Buffer] = SimpleQueue()
        # Two for each thread: one is read into while the other travels.
        for _ in range(2 * num_threads):
            self._free.put(_Buffer(piece_bytes, device))

    def read(self, stored: StoredMatrix) -> torch.Tensor:
        """uint8 [rows, bytes of the wanted columns] on the device; work that the current stream gets later finds them
        there. A row may not be longer than a piece. Raises OSError, EOFError where the file ends too early.
        """
        width = stored.columns.stop - stored.columns.start
        out = torch.empty(stored.num_rows, width, dtype=torch.uint8, device=self._device)
        if self._stream is not None:
            # The memory may have been freed by work that has not ended.
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
        rows_each = self.piece_bytes // stored.row_bytes
        starts = range(0, stored.num_rows, rows_each)
        file = os.open(stored.path, os.O_RDONLY)
        try:
            pieces = [
                self._pool.submit(self._read_piece, file, stored, start, out[start : start + rows_each])
                for start in starts
            ]
            wait(pieces)  # all of them, before `out` and the file can go
        finally:
            os.close(file)
        for piece in pieces:
            piece.result()
        if self._stream is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)
        return out

    def close(self) -> None:
        """Ends the threads and frees the buffers, once their copies are over."""
        self._pool.shutdown()
        if self._stream is not None:
            self._stream.synchronize()
        while not self._free.empty():
            self._free.get()

    @torch.inference_mode()
    def _read_piece(self, file: int, stored: StoredMatrix, start: int, out: torch.Tensor) -> None:
        """Rows from `start` on into `out` uint8 [rows of the piece, width]."""
        buffer = self._free.get()
        try:
            buffer.wait()
            size = out.shape[0] * stored.row_bytes
            _read_fully(file, buffer.memory[:size], stored.offset + start * stored.row_bytes)
            if out.shape[1] != stored.row_bytes:
                # What travels must lie together, so the wanted columns move to the front first. By numpy: torch would
                # copy with a team of threads for each of these.
                rows = buffer.array[:size].reshape(out.shape[0], stored.row_bytes)
                buffer.array[: out.numel()] = rows[:, stored.columns].copy().ravel()
            buffer.send(buffer.tensor[: out.numel()].view(out.shape), out, self._stream)
        finally:
            self._free.put(buffer)


class _Buffer:
    """Host memory of one piece."""

    def __init__(self, num_bytes: int, device: torch.device) -> None:
        self.tensor, self.array = host_memory(num_bytes, torch.uint8, device)
        self.memory = self.array.data
        self._sent = torch.cuda.Event() if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def wait(self) -> None:
        """Until what was sent last has left."""
        if self._sent is not None:
            self._sent.synchronize()

    def send(self, rows: torch.Tensor, out: torch.Tensor, stream: torch.cuda.Stream | None) -> None:
        """Copies `rows`, a part of this buffer, to `out` on the device."""
        if stream is None or self._sent is None:
            out.copy_(rows)
            return
        with torch.cuda.stream(stream):
            out.copy_(rows, non_blocking=True)
            self._sent.record(stream)


def for_device(device: torch.device) -> ParallelReads | None:
    """None on a CPU: there a copy from the mapped file is the faster way, and needs no second copy of a piece."""
    return ParallelReads(device) if device.type == "cuda" else None


def _read_fully(file: int, memory: memoryview, offset: int) -> None:
    done = 0
    while done < len(memory):
        count = os.preadv(file, [memory[done:]], offset + done)
        if count == 0:
            raise EOFError(f"ends at byte {offset + done}, {len(memory) - done} too early")
        done += count
