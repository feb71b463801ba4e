"""How the attention kernels are launched: sizes of tiles, warps and stages, by what they work on. Nothing is tuned at
run time; a change here is a change of results in their last bits.

A kernel's sizes depend on bytes of a key's head and on the device's class, never on the batch.
"""

import functools
from dataclasses import dataclass

import torch

# Has more shared memory than the devices before it, for deeper tiles.
_HOPPER = 9
# The interpreter's device has few programs, so that each of them gets several pieces of work.
_INTERPRETER, _INTERPRETER_SMS = 0, 4


@dataclass(frozen=True, slots=True)
class DecodeConfig:
    """One row at a time, its group's heads as the narrow side of the products."""

    block_keys: int
    num_warps: int
    num_stages: int
    programs_per_sm: int


@dataclass(frozen=True, slots=True)
class PromptConfig:
    """Tiles of (token, head of a group) pairs."""

    block_rows: int
    block_keys: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True, slots=True)
class Device:
    """What the tables ask about a device."""

    capability: int  # its major version
    num_sms: int


@functools.cache
def describe(device: torch.device) -> Device:
    """The device of a tensor. A CPU stands for the interpreter."""
    if device.type != "cuda":
        return Device(_INTERPRETER, _INTERPRETER_SMS)
    properties = torch.cuda.get_device_properties(device)
    return Device(properties.major, properties.multi_processor_count)


def decode_config(padded_dim: int, dtype: torch.dtype, device: Device) -> DecodeConfig:
    """For heads padded to `padded_dim` elements. `programs_per_sm` is how many of them an SM holds."""
    if device.capability == _INTERPRETER:
        return DecodeConfig(block_keys=64, num_warps=1, num_stages=1, programs_per_sm=1)
    if dtype == torch.float32:
        return DecodeConfig(block_keys=32, num_warps=4, num_stages=2, programs_per_sm=2)
    if padded_dim > 128:
        return DecodeConfig(block_keys=32, num_warps=4, num_stages=3, programs_per_sm=2)
    if device.capability < _HOPPER:
        return DecodeConfig(block_keys=64, num_warps=4, num_stages=2, programs_per_sm=2)
    # Two tiles of 32 KB on their way in each of two programs: an SM needs 64 KB to keep its share of the memory busy.
    return DecodeConfig(block_keys=64, num_warps=4, num_stages=3, programs_per_sm=2)


def prompt_config(padded_dim: int, dtype: torch.dtype, device: Device) -> PromptConfig:
    """For heads padded to `padded_dim` elements."""
    if device.capability == _INTERPRETER:
        return PromptConfig(block_rows=128, block_keys=64, num_warps=1, num_stages=1)
    if dtype == torch.float32:
        return PromptConfig(block_rows=32, block_keys=16, num_warps=8, num_stages=1)
    if device.capability < _HOPPER:
        return PromptConfig(block_rows=64, block_keys=32, num_warps=8 if padded_dim > 128 else 4, num_stages=2)
    if padded_dim > 128:
        return PromptConfig(block_rows=128, block_keys=32, num_warps=8, num_stages=2)
    return PromptConfig(block_rows=128, block_keys=64, num_warps=8, num_stages=3)
