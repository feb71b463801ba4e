"""Reads a checkpoint's safetensors straight into this rank's slices, one tensor at a time.

Accounts for every tensor: one that a model asks for and the checkpoint lacks is an error, and so is one that nobody
asked for, unless it is among the names that checkpoints of the family are known to carry without use.
"""

import ctypes
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open

from penstock_server.parallel_reads import StoredMatrix, for_device

_INDEX_NAME = "model.safetensors.index.json"
_SINGLE_NAME = "model.safetensors"
_CPU = torch.device("cpu")
# One lexical rule for names in an index: no separator, no "..", nothing hidden.
_FILE_NAME = re.compile(r"(?!.*\.\.)[A-Za-z0-9_][A-Za-z0-9_.-]*\.safetensors")
# A file is mapped into memory, and the pages that were read stay resident until it is unmapped. Closing and reopening
# it takes 0.1 ms, so doing it after this many bytes keeps a load's peak at the model's own size.
_REOPEN_BYTES = 4 << 20
# From this size on a matrix is read by several threads, where that is done at all.
_PARALLEL_BYTES = 1 << 20
_PARALLEL_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
_PICKLE_ADVICE = (
    "pickled weights can run code when they are read and are refused; convert them once with transformers: "
    "AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)"
)


class WeightError(ValueError):
    """The checkpoint is not what its config promises. The message names the tensor or the file."""


class CheckpointReader:
    """The tensors of one model folder. A context manager: leaving it without an error checks for leftovers."""

    def __init__(
        self,
        folder: Path,
        known_unused: Iterable[str] = (),
        progress: Callable[[float, int], None] = lambda fraction, num_bytes: None,
        device: torch.device = _CPU,
    ) -> None:
        """`known_unused`: regular expressions of whole names that may stay unread. `progress` is told the fraction of
        tensors read, and the bytes so far of the parts that were wanted. `device`: where tensors are wanted; `read` may
        leave them on the host all the same. Raises WeightError.
        """
        self._folder = folder
        self._progress = progress
        self._known_unused = [re.compile(pattern) for pattern in known_unused]
        self._file_of = _find_tensors(folder)
        self._unread = set(self._file_of)
        self._parallel = for_device(device)
        self._first_bytes: dict[str, dict[str, int]] = {}  # of each file's tensors
        self._open_name: str | None = None
        self._open: Any = None
        self._bytes_read = 0
        self._bytes_since_open = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()
        if self._parallel is not None:
            self._parallel.close()
        if error is None:
            self._check_leftovers()

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def read(self, name: str, shape: tuple[int, ...], part: tuple[slice, ...] = ()) -> torch.Tensor:
        """Tensor `name`, whose whole shape must be `shape`, or the `part` of it: a slice for each leading dimension.

        In the stored dtype, on the host or the device. It may be a view of the mapped file: copy what is to stay, and
        drop it. Raises WeightError.
        """
        stored = self._file(name).get_slice(name)
        if tuple(stored.get_shape()) != shape:
            raise WeightError(
                f"{self._folder}: {name} has shape {stored.get_shape()}, the config asks for {list(shape)}"
            )
        tensor = self._read_in_parallel(name, stored, part)
        if tensor is None:
            tensor = stored[part] if part else stored[:]
        if not tensor.is_floating_point():
            raise WeightError(
                f"{self._folder}: {name} is stored as {tensor.dtype}: quantized checkpoints are not supported"
            )
        self._unread.discard(name)
        self._bytes_read += tensor.nbytes
        self._progress(1.0 - len(self._unread) / len(self._file_of), self._bytes_read)
        self._bytes_since_open += tensor.nbytes
        if self._bytes_since_open > _REOPEN_BYTES:
            self._close()
        return tensor

    def _read_in_parallel(self, name: str, stored: Any, part: tuple[slice, ...]) -> torch.Tensor | None:
        """A large matrix, or the part of it, on the device. None for what is to be read from the mapped file."""
        shape, dtype = stored.get_shape(), _PARALLEL_DTYPES.get(stored.get_dtype())
        if self._parallel is None or dtype is None or len(shape) != 2:
            return None
        row_bytes = shape[1] * dtype.itemsize
        if shape[0] * row_bytes < _PARALLEL_BYTES or row_bytes > self._parallel.piece_bytes:
            return None
        rows, columns = part + tuple(slice(0, size) for size in shape)[len(part) :]
        path = self._folder / self._file_of[name]
        matrix = StoredMatrix(
            path=path,
            offset=self._first_byte(name) + rows.start * row_bytes,
            num_rows=rows.stop - rows.start,
            row_bytes=row_bytes,
            columns=slice(columns.start * dtype.itemsize, columns.stop * dtype.itemsize),
        )
        try:
            return self._parallel.read(matrix).view(dtype)
        except (OSError, EOFError) as error:
            raise WeightError(f"{path} cannot be read: {error}") from error

    def _first_byte(self, name: str) -> int:
        """Where the tensor begins in its file."""
        file_name = self._file_of[name]
        if file_name not in self._first_bytes:
            self._first_bytes[file_name] = _first_bytes(self._folder / file_name)
        return self._first_bytes[file_name][name]

    def _file(self, name: str) -> Any:
        if name not in self._file_of:
            raise WeightError(f"{self._folder}: no tensor {name} in the checkpoint")
        file_name = self._file_of[name]
        if self._open_name != file_name:
            self._close()
            self._open, self._open_name = _open(self._folder / file_name), file_name
        return self._open

    def _close(self) -> None:
        self._open, self._open_name, self._bytes_since_open = None, None, 0
        _return_freed_memory()

    def _check_leftovers(self) -> None:
        leftovers = sorted(n for n in self._unread if not any(p.fullmatch(n) for p in self._known_unused))
        if leftovers:
            shown = ", ".join(leftovers[:5]) + (f" and {len(leftovers) - 5} more" if len(leftovers) > 5 else "")
            raise WeightError(f"{self._folder}: tensors that the model has no use for: {shown}")


def _find_tensors(folder: Path) -> dict[str, str]:
    """Which file holds each tensor. What the index does not name is not read."""
    if (folder / _INDEX_NAME).is_file():
        return _read_index(folder)
    if (folder / _SINGLE_NAME).is_file():
        return dict.fromkeys(_open(folder / _SINGLE_NAME).keys(), _SINGLE_NAME)
    if pickles := sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern)):
        raise WeightError(f"{folder} has weights as {pickles[0]} only: {_PICKLE_ADVICE}")
    raise WeightError(f"{folder} has no weights: neither {_SINGLE_NAME} nor {_INDEX_NAME}")


def _read_index(folder: Path) -> dict[str, str]:
    path = folder / _INDEX_NAME
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise WeightError(f"{path} is not an index of safetensors: {error}") from error
    if not isinstance(weight_map, dict):
        raise WeightError(f"{path}: weight_map is not an object")
    for tensor, file_name in weight_map.items():
        if not isinstance(file_name, str) or not _FILE_NAME.fullmatch(file_name):
            raise WeightError(f"{path}: {tensor} is in {file_name!r}, which is not a plain .safetensors file name")
    held: dict[str, set[str]] = {}
    for file_name in sorted(set(weight_map.values())):
        if not (folder / file_name).is_file():
            stale = f"; if {_SINGLE_NAME}, which is, holds the whole model, delete {_INDEX_NAME}"
            whole = (folder / _SINGLE_NAME).is_file()
            raise WeightError(f"{path} names {file_name}, which is not in the folder{stale if whole else ''}")
        held[file_name] = set(_open(folder / file_name).keys())
    for tensor, file_name in weight_map.items():
        if tensor not in held[file_name]:
            raise WeightError(f"{path}: {file_name} has no tensor {tensor}")
    return weight_map


def _first_bytes(path: Path) -> dict[str, int]:
    """Of each tensor in a file that safetensors has opened: eight bytes of length, a header of JSON, then the data."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    return {name: 8 + length + entry["data_offsets"][0] for name, entry in header.items() if name != "__metadata__"}


def _return_freed_memory() -> None:
    """Gives freed buffers back to the system: glibc would keep those of the unpacked weights."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise WeightError(f"{path} is not a readable safetensors file: {error}") from error
