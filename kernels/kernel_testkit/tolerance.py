"""How far an implementation may be from the float64 reference, per operation and dtype."""

import torch

# Largest |got - expected| in units of max(1, |expected|). A bfloat16 has 8 bits of mantissa: 2^-8 is one rounding.
# A float16 has 11. Where exp, sine or cosine are taken there is room for a GPU's, which may be off by 2 ulp.
TOLERANCES = {
    "attention": {torch.float32: 1e-5, torch.float16: 2**-9, torch.bfloat16: 2**-6},
    "embedding": {torch.float32: 0.0, torch.float16: 0.0, torch.bfloat16: 0.0},
    "kv_store": {torch.float32: 0.0, torch.float16: 0.0, torch.bfloat16: 0.0},
    "linear": {torch.float32: 2e-5, torch.float16: 2**-10, torch.bfloat16: 2**-6},
    "rms_norm": {torch.float32: 1e-6, torch.float16: 2**-10, torch.bfloat16: 2**-7},
    "rotary": {torch.float32: 2e-6, torch.float16: 2**-9, torch.bfloat16: 2**-6},
    "normed_rotary": {torch.float32: 4e-6, torch.float16: 2**-8, torch.bfloat16: 2**-5},
    "linear_silu_mul": {torch.float32: 4e-6, torch.float16: 2**-8, torch.bfloat16: 2**-5},
    "silu_mul": {torch.float32: 2e-6, torch.float16: 2**-8, torch.bfloat16: 2**-5},
}


def check(operation: str, got: torch.Tensor, expected: torch.Tensor) -> None:
    """Fails unless `got` is finite and near `expected` (float64, same shape). Either may be on any device."""
    got, expected = got.cpu(), expected.cpu()
    assert got.shape == expected.shape
    assert torch.isfinite(got).all(), f"{operation}: {(~torch.isfinite(got)).sum()} elements are not finite"
    error = (got.double() - expected).abs() / expected.abs().clamp_min(1.0)
    worst = error.max().item() if error.numel() else 0.0
    limit = TOLERANCES[operation][got.dtype]
    assert worst <= limit, f"{operation}: error {worst:.3g}, allowed {limit:.3g}"
