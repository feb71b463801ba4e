"""What a step would do on CUDA, seen without a GPU: torch's fake tensors have a device and shapes, but no values.

Nothing between the upload of a step and its results may copy between host and device, or need a value on the host:
each would wait for the device, and cannot be captured in a graph. `test_engine_gpu.py` sees the same on a real one.
"""

import numpy as np
import pytest
import torch
from shard_testkit.sampling import NUM_SEATS, mixture, registrations
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from penstock_kernels import philox
from penstock_kernels.rotary import rotation
from penstock_server import sampling, seat_params, seats
from penstock_server.layers.rotary import RopeConfig, RotaryEmbedding
from penstock_server.sampling import Sampler, SampleRows, SamplerSizes

CUDA = torch.device("cuda", 0)
NEEDS_VALUES = ("_local_scalar_dense", "item", "nonzero", "masked_select", "unique", "is_nonzero", "equal")


class Watch(TorchDispatchMode):
    """Notes every operation that would wait for the device."""

    def __init__(self):
        super().__init__()
        self.num_operations = 0
        self.waits = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        tensors = [value for value in (*args, out) if isinstance(value, torch.Tensor) and value.dim()]
        self.num_operations += 1
        crosses = "copy" in name and len({tensor.device.type for tensor in tensors}) > 1
        by_mask = name.startswith("index") and any(
            isinstance(index, torch.Tensor) and index.dtype == torch.bool
            for index in (args[1] if isinstance(args[1], (list, tuple)) else ())
        )
        if name in NEEDS_VALUES or crosses or by_mask:
            self.waits.append(str(func))
        return out


@pytest.fixture(autouse=True)
def fake_cuda(monkeypatch):
    """Copies through pinned memory are allowed; here they appear as a tensor that is simply there."""

    def appear(array, device):
        return torch.empty(array.shape, dtype=torch.from_numpy(array).dtype, device=device)

    for module in (seats, seat_params):
        monkeypatch.setattr(module, "to_device", appear)
    philox._constants.cache_clear()
    with FakeTensorMode():
        philox._constants(CUDA)  # made in the warm-up
        yield
    philox._constants.cache_clear()


def test_the_sampler_where_there_is_no_triton(monkeypatch):
    monkeypatch.setattr(sampling, "uses_triton", lambda tensor: False)
    sampler = Sampler(SamplerSizes(NUM_SEATS, 40, 301, NUM_SEATS, 5), CUDA)
    seats_of_rows = torch.arange(40, device=CUDA)
    rows = SampleRows(seats_of_rows, seats_of_rows, np.arange(40))
    logits = torch.empty(40, 301, device=CUDA)
    with Watch() as seen:
        sampler.register(registrations(dict(enumerate(mixture(40)))))
        sampler.sample(logits, rows)
        sampler.release(np.arange(40))
        sampler.sample(logits, rows)
    assert not seen.waits
    assert seen.num_operations > 100


@pytest.mark.parametrize("kind", ["default", "linear", "dynamic", "llama3"])
def test_rotary_angles(kind):
    rotary = RotaryEmbedding(RopeConfig(kind, 10_000.0, 2.0, 1.0, 4.0, 32), 40, CUDA, torch.bfloat16)
    positions = torch.arange(8, device=CUDA)
    with Watch() as seen:
        cosine, _ = rotary(positions)
        rotation(rotary.angles(positions), torch.float32)
    assert not seen.waits
    assert cosine.device == CUDA


def test_the_watch_sees_what_would_wait():
    values = torch.arange(8, device=CUDA)
    with Watch() as seen:
        values[torch.zeros(8, dtype=torch.bool, device=CUDA)] = 0
        values.cpu()
        values.copy_(torch.from_numpy(np.arange(8)))
    assert len(seen.waits) == 3
