"""Muon for matrices, AdamW for the embedding and the norms, and an average of the weights.

It takes gradients as given and knows nothing of the loss. The parts of a fused matrix (q, k, v;
gate, up) are orthogonalised one by one.
"""

import torch
from model import Llama
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalise(batch: Tensor) -> Tensor:
    """Five Newton-Schulz iterations on a batch of matrices that are no taller than wide."""
    a, b, c = _COEFFICIENTS
    x = batch.bfloat16()
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + torch.baddbmm(gram, gram, gram, beta=b, alpha=c) @ x
    return x.float()


def _parts(model: Llama) -> list[tuple[torch.nn.Parameter, slice]]:
    """Every single matrix, as a row range of a parameter."""
    shape = model.shape
    kv_width = shape.kv_heads * shape.head_dim
    q, k, v = shape.hidden, shape.hidden + kv_width, shape.hidden + 2 * kv_width
    ff = shape.feed_forward
    parts = []
    for layer in model.layers:
        parts += [(layer.qkv, slice(0, q)), (layer.qkv, slice(q, k)), (layer.qkv, slice(k, v))]
        parts += [(layer.gate_up, slice(0, ff)), (layer.gate_up, slice(ff, 2 * ff))]
        parts += [(layer.out, slice(None)), (layer.down, slice(None))]
    return parts


class Optimizer:
    """One `step(scale)` for the whole model; `scale` is the schedule's share of the full rate."""

    def __init__(self, model: Llama, muon_rate: float = 0.02, adam_rate: float = 0.004) -> None:
        self.model, self.muon_rate, self.adam_rate = model, muon_rate, adam_rate
        matrices = [p for layer in model.layers for p in layer.parameters() if p.ndim == 2]
        self.momentum = {p: torch.zeros_like(p) for p in matrices}
        others = [p for p in model.parameters() if p not in self.momentum]
        self.adam = torch.optim.AdamW(others, lr=adam_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
        self.average = [p.detach().clone() for p in model.parameters()]
        self.groups: dict[tuple[int, int], list[tuple[torch.nn.Parameter, slice]]] = {}
        for parameter, rows in _parts(model):
            size = tuple(sorted(parameter[rows].shape))
            self.groups.setdefault(size, []).append((parameter, rows))

    @torch.no_grad()
    def step(self, scale: float) -> None:
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for group in self.adam.param_groups:
            group["lr"] = self.adam_rate * scale
        self.adam.step()
        rate = self.muon_rate * scale
        for parameter, momentum in self.momentum.items():
            momentum.lerp_(parameter.grad, 0.05)
            parameter.grad.lerp_(momentum, 0.95)
            parameter.mul_(1 - 0.05 * rate)
        for parts in self.groups.values():
            self._muon(parts, rate)
        self.model.zero_grad(set_to_none=True)

    def _muon(self, parts: list[tuple[torch.nn.Parameter, slice]], rate: float) -> None:
        tall = [parameter[rows].shape[0] > parameter[rows].shape[1] for parameter, rows in parts]
        grads = [parameter.grad[rows] for parameter, rows in parts]
        updates = orthogonalise(torch.stack([g.mT if t else g for g, t in zip(grads, tall, strict=True)]))
        for (parameter, rows), update, is_tall in zip(parts, updates, tall, strict=True):
            height, width = parameter[rows].shape
            change = update.mT if is_tall else update
            parameter[rows].sub_(change, alpha=rate * max(1.0, height / width) ** 0.5)

    @torch.no_grad()
    def update_average(self, decay: float) -> None:
        torch._foreach_lerp_(self.average, list(self.model.parameters()), 1 - decay)

    @torch.no_grad()
    def swap_average(self) -> None:
        """Exchanges the weights with their average; a second call undoes it."""
        for parameter, average in zip(self.model.parameters(), self.average, strict=True):
            kept = parameter.clone()
            parameter.copy_(average)
            average.copy_(kept)

    def state_dict(self) -> dict:
        return {
            "adam": self.adam.state_dict(),
            "momentum": list(self.momentum.values()),
            "average": self.average,
        }

    def load_state_dict(self, state: dict) -> None:
        self.adam.load_state_dict(state["adam"])
        self.average = state["average"]
        for momentum, saved in zip(self.momentum.values(), state["momentum"], strict=True):
            momentum.copy_(saved)
