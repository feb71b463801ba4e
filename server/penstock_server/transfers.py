"""Copies between host and device that do not wait for the device. On a CPU there is nothing to copy."""

import numpy as np
import torch

# Values of a results buffer begin at multiples of this many bytes, which every dtype allows.
_ALIGNMENT = 8


def to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """The array on `device`, copied in stream order from pinned memory; from any other the host would wait.

    On a CPU it shares the array's memory.
    """
    host = torch.from_numpy(array)
    if device.type == "cpu" or not array.size:
        return host.to(device)
    # torch keeps freed pinned memory for the next call, and not before the copy from it is over.
    return host.pin_memory().to(device, non_blocking=True)


class ResultBuffer:
    """Pinned host memory for what one step sends back. Allocated once: pinning takes longer than a step's launch."""

    def __init__(self, num_bytes: int, device: torch.device) -> None:
        self._bytes = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True) if device.type == "cuda" else None
        self._used = 0

    def clear(self) -> None:
        """Makes room for another step, once the results of the last one have been read."""
        self._used = 0

    def receive(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor's values on the host once the stream gets to this copy; on a CPU the tensor itself."""
        if self._bytes is None:
            return tensor
        start, size = self._used, tensor.nbytes
        self._used += -(-size // _ALIGNMENT) * _ALIGNMENT
        assert self._used <= self._bytes.numel(), "a step sends back more than any should"
        host = self._bytes[start : start + size].view(tensor.dtype).view(tensor.shape)
        return host.copy_(tensor, non_blocking=True)
