"""The state of a training run: model, optimizer, position; its checkpoint and its output.

It does not train; train.py does.
"""

import json
import os
import platform
from pathlib import Path

import text
import torch
from model import Llama, Shape, export
from optim import Optimizer
from tokenizers import Tokenizer

_POSITION = ("stage", "step", "num_updates", "tokens", "seconds")


class Run:
    """The state of a training run and where it is kept."""

    def __init__(self, out: Path, checkpoints: Path, seed: int, device: torch.device) -> None:
        torch.manual_seed(seed)
        self.device = device
        self.out, self.path = out, checkpoints / "last.pt"
        checkpoints.mkdir(parents=True, exist_ok=True)
        self.tokenizer = _tokenizer(checkpoints / "tokenizer.json")
        self.model = Llama(Shape(), torch.tensor(text.twins(self.tokenizer))).to(device)
        self.optimizer = Optimizer(self.model)
        self.stage = self.step = self.num_updates = self.tokens = 0
        self.seconds = 0.0
        if self.path.exists():
            self._load()

    def _load(self) -> None:
        state = torch.load(self.path, weights_only=True, map_location=self.device)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for name in _POSITION:
            setattr(self, name, state[name])

    def save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            **{name: getattr(self, name) for name in _POSITION},
        }
        torch.save(state, self.path.with_suffix(".new"))
        self.path.with_suffix(".new").rename(self.path)

    def advance(self, num_tokens: int) -> None:
        """Counts a step and takes it into the averaged weights."""
        self.step += 1
        self.num_updates += 1
        self.tokens += num_tokens
        # Early on, a long memory would only remember the beginning.
        self.optimizer.update_average(min(0.995, self.num_updates / (self.num_updates + 20)))

    def write_model(self) -> None:
        """The present weights, as Hugging Face files, and a record of the training."""
        export(self.model, self.out, text.EOS, text.BOS, text.PAD)
        text.save_tokenizer(self.tokenizer, self.out)
        record = {
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "tokens": self.tokens,
            "minutes": round(self.seconds / 60, 1),
            "machine": _machine(self.device),
        }
        (self.out / "training.json").write_text(json.dumps(record, indent=2) + "\n")


def _tokenizer(path: Path) -> Tokenizer:
    if not path.exists():
        text.train_tokenizer().save(str(path))
    return Tokenizer.from_file(str(path))


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        return f"one {torch.cuda.get_device_name(device)}"
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} cores ({names[0] if names else platform.machine()})"
