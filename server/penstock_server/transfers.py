"""Copies between host and device that do not wait for the device. On a CPU there is nothing to copy."""

import numpy as np
import torch

# Values of a results buffer begin at multiples of this many bytes, which every dtype allows.
_ALIGNMENT = 8


def host_memory(count: int, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, np.ndarray]:
    """Zeros [count], for torch and for numpy, that `device` can copy from and to while the host goes on: pinned,
    unless it is a CPU.

    For buffers that stay: pinning takes longer than a step's launch.
    """
    memory = torch.zeros(count, dtype=dtype, pin_memory=device.type == "cuda")
    return memory, memory.numpy()


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
    """What one step sends back to the host. On a CPU the host reads the step's own tensors.

    On CUDA the step leaves its results side by side in device memory of its own, and they travel in one copy on a
    stream of their own: the next step, which overwrites what a graph left, begins meanwhile.
    """

    def __init__(self, num_bytes: int, device: torch.device, stream: torch.cuda.Stream | None) -> None:
        """`stream`: on which results travel; None on a CPU."""
        self._stream = stream
        self._used = 0
        if stream is not None:
            self._host, _ = host_memory(num_bytes, torch.uint8, device)
            self._device = torch.zeros(num_bytes, dtype=torch.uint8, device=device)

    def clear(self) -> None:
        """Makes room for another step, once the results of the last one have been read."""
        self._used = 0

    def receive(self, tensor: torch.Tensor) -> torch.Tensor:
        """Where the tensor's values will be on the host once `send` has been called and its copy is over."""
        if self._stream is None:
            return tensor
        start, size = self._used, tensor.nbytes
        self._used += -(-size // _ALIGNMENT) * _ALIGNMENT
        assert self._used <= self._host.numel(), "a step sends back more than any should"
        kept, host = (part[start : start + size].view(tensor.dtype) for part in (self._device, self._host))
        kept.view(tensor.shape).copy_(tensor)
        return host.view(tensor.shape)

    def send(self) -> None:
        """Copies all that was received, once the compute stream has got here."""
        if self._stream is None:
            return
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            self._host[: self._used].copy_(self._device[: self._used], non_blocking=True)
