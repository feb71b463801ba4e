"""The packed linear on the shapes of a 135M Llama: against reading its weight once, or its arithmetic."""

import torch
from harness import report, rotating, set_up, shortest_seconds

from penstock_kernels import linear

SHAPES = {"qkv": (960, 576), "output": (576, 576), "gate_up": (3072, 576), "down": (576, 1536), "head": (49152, 576)}


def main() -> None:
    """One line per layer and number of tokens."""
    set_up()
    for name, (out_features, in_features) in SHAPES.items():
        size = 4 * out_features * in_features
        layers = rotating(lambda o=out_features, i=in_features: linear.prepare(torch.randn(o, i)), size)
        for tokens in (1, 8, 32, 128):
            x = torch.randn(tokens, in_features)
            seconds = shortest_seconds(lambda x=x, layers=layers: next(layers)(x))
            report("linear", f"{name} {tokens} tokens", seconds, size, 2 * tokens * out_features * in_features)


if __name__ == "__main__":
    main()
