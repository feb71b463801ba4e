"""Random weights in place of a checkpoint's, for measurements of models whose weights are not at hand."""

import logging
import zlib

import torch

logger = logging.getLogger(__name__)


class DummyReader:
    """Makes what `CheckpointReader` would read, out of nothing but the shape that the config asks for.

    A tensor is a function of its name, its shape and the kind of device, so that ranks that hold the same part of it
    hold the same numbers, and the model is the same at every number of ranks.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        """`dtype`: that of the checkpoint, by its config."""
        self._dtype = dtype
        self._device = device
        logger.warning("--load-format dummy: the weights are random, and the answers mean nothing")

    def __contains__(self, name: str) -> bool:
        """No tensor is there that nobody asks for."""
        return False

    def read(self, name: str, shape: tuple[int, ...], part: tuple[slice, ...] = ()) -> torch.Tensor:
        """Tensor `name` of this whole shape, or the `part` of it, on the device.

        Matrices have a deviation of 1/sqrt(inputs), so that a product is as large as what goes in; a norm's weights are
        1, and biases 0.
        """
        whole = torch.empty(shape, dtype=self._dtype, device=self._device)
        if len(shape) == 1:
            whole.fill_(0.0 if name.endswith(".bias") else 1.0)
        else:
            generator = torch.Generator(self._device).manual_seed(zlib.crc32(name.encode()))
            whole.normal_(0.0, shape[-1] ** -0.5, generator=generator)
        return whole[part].contiguous()
