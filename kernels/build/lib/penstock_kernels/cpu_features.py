"""What the processor can do that decides between implementations."""

import torch


def has_bf16_arithmetic() -> bool:
    """Whether oneDNN multiplies bfloat16 in hardware (AMX or AVX512-BF16), about 3 times as fast as float32."""
    if not torch._C._has_mkldnn:
        return False
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
