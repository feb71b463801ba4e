"""Rotary frequencies as transformers computes them, from `RopeConfig`.

Shapes: T tokens, D head size. Angle of (position p, pair i) = p * frequency_i, frequency_i = theta^(-2 i / D), changed
by

- linear: divided by factor (kaiokendev's interpolation);
- llama3: divided by factor where the wavelength exceeds original / low_freq_factor, kept where it is below
  original / high_freq_factor, and interpolated between (Llama 3.1's `apply_scaling`);
- dynamic (NTK): theta * (factor n / original - (factor - 1))^(D / (D - 2)) for a sequence of n > original tokens.

Dynamic frequencies depend on a length, and keys stay in the cache, so the length must be a property of the position
alone or else a token's keys would depend on how its prompt was cut into chunks. Here n = p + 1: the token at p is
turned as if it were the last one. That equals transformers up to the original length, and beyond it for tokens that
are generated one by one. It differs for a prompt longer than the original length, all of whose tokens transformers
turns by the prompt's whole length.
"""

import math
from dataclasses import dataclass

import torch

from penstock_kernels.rotary import rotation

Rotation = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary frequencies. `kind` says which of the other fields matter."""

    kind: str  # "default", "linear", "dynamic" or "llama3"
    theta: float
    factor: float = 1.0  # linear, dynamic, llama3
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    original_max_positions: int = 0  # dynamic, llama3: the length that the model was trained at


class RotaryEmbedding:
    """Makes a step's rotation once; all layers use it."""

    def __init__(self, config: RopeConfig, head_dim: int, device: torch.device, dtype: torch.dtype) -> None:
        self._config = config
        self._dtype = dtype
        self._exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
        self._head_dim = head_dim
        self._frequencies = _static_frequencies(config, self._exponents)

    def __call__(self, positions: torch.Tensor) -> Rotation:
        """Cosines and signed sines, each [T, 1, D], of int64 `positions` [T]."""
        return rotation(self.angles(positions), self._dtype)

    def angles(self, positions: torch.Tensor) -> torch.Tensor:
        """float32 [T, D / 2]."""
        frequencies = self._frequencies
        if self._config.kind == "dynamic":
            frequencies = self._dynamic_frequencies(positions)
        return positions[:, None].float() * frequencies

    def _dynamic_frequencies(self, positions: torch.Tensor) -> torch.Tensor:
        """float32 [T, D / 2].

        Powers as exp(log): torch's `pow` on a CPU rounds the last elements of a thread's range differently from the
        others, so a token's keys would depend on its batch. In float64, or the exponent would magnify log's error.
        """
        config = self._config
        original = config.original_max_positions
        length = (positions + 1).clamp_min(original).double()
        stretch = config.factor * length / original - (config.factor - 1)
        log_base = stretch.log() * (self._head_dim / (self._head_dim - 2)) + math.log(config.theta)
        frequencies = (self._exponents.double() * -log_base[:, None]).exp().float()
        # To the last bit what transformers computes where nothing is stretched.
        return torch.where((length > original)[:, None], frequencies, self._frequencies)


def _static_frequencies(config: RopeConfig, exponents: torch.Tensor) -> torch.Tensor:
    frequencies = 1.0 / config.theta**exponents
    if config.kind == "linear":
        return frequencies / config.factor
    if config.kind == "llama3":
        return _llama3(config, frequencies)
    return frequencies


def _llama3(config: RopeConfig, frequencies: torch.Tensor) -> torch.Tensor:
    original = config.original_max_positions
    wavelength = 2 * math.pi / frequencies
    scaled = torch.where(wavelength > original / config.low_freq_factor, frequencies / config.factor, frequencies)
    smooth = (original / wavelength - config.low_freq_factor) / (config.high_freq_factor - config.low_freq_factor)
    between = (1 - smooth) * frequencies / config.factor + smooth * frequencies
    is_between = (wavelength >= original / config.high_freq_factor) & (wavelength <= original / config.low_freq_factor)
    return torch.where(is_between, between, scaled)
