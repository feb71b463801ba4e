"""Counts the torch operations that a piece of code dispatches."""

from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class OperationCounter(TorchDispatchMode):
    """A context: `counts` holds every dispatched operation by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


def count_operations(work: Any) -> Counter[str]:
    """Runs `work()` and returns how often it dispatched each operation."""
    with torch.no_grad(), OperationCounter() as counter:
        work()
    return counter.counts
