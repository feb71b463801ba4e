"""A decode step of a 135M-shaped random Llama in process: 576 hidden, 30 layers, 9/3 heads, 1536 inner, 49,152 ids.

The peer is the sum of its packed linears alone, run in the same order in the same round: what is above it is everything
that this package adds to the products.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from kernel_testkit.batches import Rows, attention_batch, block_tables
from safetensors.torch import save_file

from penstock_kernels import linear
from penstock_server import models
from penstock_server.batch import ForwardBatch
from penstock_server.kv_cache import KvCache, allocate
from penstock_server.models.base import Model
from penstock_server.models.source import ModelSource
from penstock_server.parallel import TensorParallel

HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, INNER, VOCABULARY = 576, 30, 9, 3, 64, 1536, 49152
TOKENS_PER_BLOCK = 16
CPU = torch.device("cpu")


def write_checkpoint(folder: Path) -> None:
    """A random bfloat16 checkpoint with tied embeddings."""
    shapes: dict[str, tuple[int, ...]] = {"embed_tokens": (VOCABULARY, HIDDEN), "norm": (HIDDEN,)}
    for layer in range(LAYERS):
        name = f"layers.{layer}"
        shapes |= {f"{name}.input_layernorm": (HIDDEN,), f"{name}.post_attention_layernorm": (HIDDEN,)}
        shapes |= {f"{name}.self_attn.{part}_proj": (HEADS * HEAD_DIM, HIDDEN) for part in "q"}
        shapes |= {f"{name}.self_attn.{part}_proj": (KV_HEADS * HEAD_DIM, HIDDEN) for part in "kv"}
        shapes |= {f"{name}.self_attn.o_proj": (HIDDEN, HEADS * HEAD_DIM)}
        shapes |= {f"{name}.mlp.{part}_proj": (INNER, HIDDEN) for part in ("gate", "up")}
        shapes |= {f"{name}.mlp.down_proj": (HIDDEN, INNER)}
    tensors = {f"model.{name}.weight": torch.randn(shape).mul(0.02).bfloat16() for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors")
    config = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))


def decode_batch(num_rows: int, num_keys: int) -> ForwardBatch:
    """Rows of equal length with blocks of their own."""
    rows = Rows([(num_keys, 1)] * num_rows)
    table = block_tables([num_keys] * num_rows, TOKENS_PER_BLOCK, torch.Generator().manual_seed(0))
    return ForwardBatch(
        token_ids=torch.randint(0, VOCABULARY, (num_rows,)),
        positions=torch.full((num_rows,), num_keys - 1),
        attention=attention_batch(rows, table, TOKENS_PER_BLOCK),
    )


def step(model: Model, batch: ForwardBatch, kv: KvCache) -> torch.Tensor:
    """What the engine runs between the embedding and the logits."""
    return model.logits(model.forward(batch, kv))


def products_alone() -> Callable[[int], None]:
    """A function that runs only the products of a step of so many rows, with weights of the same shapes."""
    shapes = [
        ((HEADS + 2 * KV_HEADS) * HEAD_DIM, HIDDEN),
        (HIDDEN, HEADS * HEAD_DIM),
        (2 * INNER, HIDDEN),
        (HIDDEN, INNER),
    ]
    layers = [linear.prepare(torch.randn(shape)) for _ in range(LAYERS) for shape in shapes]
    layers.append(linear.prepare(torch.randn(VOCABULARY, HIDDEN)))

    def run(num_rows: int) -> None:
        inputs = {size: torch.ones(num_rows, size) for size in (HIDDEN, HEADS * HEAD_DIM, INNER)}
        for layer in layers:
            layer(inputs[layer.in_features])

    return run


def shortest(first: Callable[[], object], second: Callable[[], object], seconds: float) -> tuple[float, float]:
    """The shortest time of each, run in turn."""
    best = [float("inf"), float("inf")]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for index, work in enumerate((first, second)):
            start = time.perf_counter()
            work()
            best[index] = min(best[index], time.perf_counter() - start)
    return best[0], best[1]


def main() -> None:
    """One line per number of rows."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--keys", type=int, default=160)
    parser.add_argument("--seconds", type=float, default=5.0)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        write_checkpoint(Path(folder))
        model = models.load(ModelSource(Path(folder), CPU, "auto"), TensorParallel(0, 1, None, CPU))
        products = products_alone()
        for num_rows in (1, 8, 32):
            batch = decode_batch(num_rows, arguments.keys)
            kv = allocate(model.kv_spec, int(batch.attention.block_table.max()) + 1, TOKENS_PER_BLOCK, CPU)
            ours, peer = shortest(
                lambda batch=batch, kv=kv: step(model, batch, kv), lambda n=num_rows: products(n), arguments.seconds
            )
            line = {
                "bench": "decode step, 135M Llama, float32",
                "case": f"{num_rows} rows of {arguments.keys} keys, {arguments.threads} threads",
                "value": round(num_rows / ours, 1),
                "unit": "tok/s",
                "peer": "the packed products alone",
                "peer_value": round(num_rows / peer, 1),
                "ratio": round(peer / ours, 3),
            }
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
