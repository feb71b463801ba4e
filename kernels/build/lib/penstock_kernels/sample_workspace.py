"""Buffers for sampling, allocated once: fresh ones cost more in page faults than the arithmetic in them."""

import torch

# Rows that go through the sampler at a time. Bounds the buffers (about 36 bytes x vocabulary a row); a batch of up to
# this many rows launches the same number of operations.
SLICE_ROWS = 32


class SampleWorkspace:
    """[SLICE_ROWS, V] buffers. An operation may overwrite every buffer that it was not given as an argument."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        def buffer(dtype: torch.dtype) -> torch.Tensor:
            return torch.empty((SLICE_ROWS, vocab_size), dtype=dtype, device=device)

        self.scores = buffer(torch.float32)  # the slice's logits as edited so far
        self.subset = buffer(torch.float32)  # the rows of it that a stage concerns
        self.probs = buffer(torch.float32)
        self.keys = buffer(torch.int32)  # floats as integers of the same order
        self.digits = buffer(torch.int32)
        self.weights = buffer(torch.int64)
        self.index = buffer(torch.int64)
        self.one = torch.ones((1, 1), dtype=torch.int64, device=device)
