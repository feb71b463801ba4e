"""The operations between the products, on the sizes of a 135M Llama: against reading and writing their tensors once."""

from collections.abc import Callable

import torch
from harness import report, set_up, shortest_seconds

from penstock_kernels.embedding import embedding
from penstock_kernels.kv_store import kv_store
from penstock_kernels.rms_norm import add_rms_norm
from penstock_kernels.rotary import rotary, rotation
from penstock_kernels.silu_mul import silu_mul

HIDDEN, INNER, HEADS, KV_HEADS, HEAD_DIM, VOCABULARY, BLOCKS = 576, 1536, 9, 3, 64, 49152, 600


def cases(tokens: int) -> dict[str, tuple[Callable[[], object], int]]:
    """Per operation: the work, and the bytes that it reads and writes at least."""
    x, residual, weight = torch.randn(tokens, HIDDEN), torch.randn(tokens, HIDDEN), torch.randn(HIDDEN)
    gate_up = torch.randn(tokens, 2 * INNER)
    qkv = torch.randn(tokens, HEADS + 2 * KV_HEADS, HEAD_DIM)
    turned = qkv[:, : HEADS + KV_HEADS]
    factors = rotation(torch.randn(tokens, HEAD_DIM // 2), torch.float32)
    caches = [torch.zeros(BLOCKS, 16, KV_HEADS, HEAD_DIM) for _ in range(2)]
    slots = torch.randperm(BLOCKS * 16)[:tokens]
    key, value = qkv[:, HEADS : HEADS + KV_HEADS], qkv[:, HEADS + KV_HEADS :]
    table, ids = torch.zeros(VOCABULARY, HIDDEN, dtype=torch.bfloat16), torch.randint(0, VOCABULARY, (tokens,))
    return {
        "rms_norm": (lambda: add_rms_norm(x, residual, weight, 1e-5), 4 * x.nbytes),
        "silu_mul": (lambda: silu_mul(gate_up), gate_up.nbytes * 3 // 2),
        "rotary": (lambda: rotary(turned, *factors), 8 * turned.numel()),
        "kv_store": (lambda: kv_store(key, value, caches[0], caches[1], slots), 16 * key.numel()),
        "embedding": (lambda: embedding(ids, table, 0, torch.float32), 6 * tokens * HIDDEN),
    }


def main() -> None:
    """One line per operation and number of tokens."""
    set_up()
    for tokens in (1, 8, 32, 512):
        for name, (work, num_bytes) in cases(tokens).items():
            report(name, f"{tokens} tokens", shortest_seconds(work, 0.2), num_bytes)


if __name__ == "__main__":
    main()
