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

_INDEX_NAME = "model.safetensors.index.json"
_SINGLE_NAME = "model.safetensors"
# One lexical rule for names in an index: no separator, no "..", nothing hidden.
_FILE_NAME = re.compile(r"(?!.*\.\.)[A-Za-z0-9_][A-Za-z0-9_.-]*\.safetensors")
# A file is mapped into memory, and the pages that were read stay resident until it is unmapped. Closing and reopening
# it takes 0.1 ms, so doing it after this many bytes keeps a load's peak at the model's own size.
_REOPEN_BYTES = 4 << 20
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
    ) -> None:
        """`known_unused`: regular expressions of whole names that may stay unread. `progress` is told the fraction of
        tensors read, and the bytes so far of the parts that were wanted. Raises WeightError.
        """
        self._folder = folder
        self._progress = progress
        self._known_unused = [re.compile(pattern) for pattern in known_unused]
        self._file_of = _find_tensors(folder)
        self._unread = set(self._file_of)
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
        if error is None:
            self._check_leftovers()

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def read(self, name: str, shape: tuple[int, ...], part: tuple[slice, ...] = ()) -> torch.Tensor:
        """Tensor `name`, whose whole shape must be `shape`, or the `part` of it: a slice for each leading dimension.

        In the stored dtype, contiguous. The result may be a view of the mapped file: copy what is to stay, and drop it.
        Raises WeightError.
        """
        stored = self._file(name).get_slice(name)
        if tuple(stored.get_shape()) != shape:
            raise WeightError(
                f"{self._folder}: {name} has shape {stored.get_shape()}, the config asks for {list(shape)}"
            )
        tensor: torch.Tensor = stored[part] if part else stored[:]
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
