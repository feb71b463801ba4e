"""Where the parts of `gpu_report.py` measure: a card with a model of the 8B shape, or, in a dry run, the CPU with a toy
of the same kind. Each part is a program of its own that takes these options."""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import gpu_models
import record
import torch

# Small enough for seconds on two cores; every word of the benchmarks' prompts is in its vocabulary.
TOY = gpu_models.Shape(hidden=64, layers=2, heads=4, kv_heads=2, feed_forward=128, vocabulary=1024, max_positions=2048)
CEILINGS = "ceilings.json"


@dataclass(frozen=True, slots=True)
class Bed:
    """What a part needs to know."""

    device: torch.device
    shape: gpu_models.Shape
    dtype: str
    out: Path  # folder of this report: state, ceilings, profile
    model: Path  # folder of the model
    dry: bool

    @property
    def bytes_per_second(self) -> float:
        """That the card reads, as measured by the part `ceilings`."""
        return float(self._ceilings()["read_bandwidth"])

    @property
    def flops(self) -> float:
        """Operations a second of a large product, from the same."""
        return float(self._ceilings()["matrix_rate"])

    def keep_ceilings(self, bytes_per_second: float, flops: float) -> None:
        """For the parts that follow."""
        text = json.dumps({"read_bandwidth": bytes_per_second, "matrix_rate": flops})
        (self.out / CEILINGS).write_text(text)

    def synchronize(self) -> None:
        """Waits for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def decode_floor(self, batch: int, context: float) -> float:
        """Seconds of a decode step that does nothing but read weights and keys and values, or multiply."""
        item = 2 if self.dtype == "bfloat16" else 4
        weights = self.shape.step_weight_bytes * item / 2
        kv_bytes = batch * context * self.shape.kv_bytes_per_token * item / 2
        return max((weights + kv_bytes) / self.bytes_per_second, self.shape.step_weight_bytes * batch / self.flops)

    def _ceilings(self) -> dict[str, float]:
        path = self.out / CEILINGS
        if not path.exists():
            raise SystemExit(f"{path} is not there: run the part `ceilings` first")
        values: dict[str, float] = json.loads(path.read_text())
        return values


def parser(description: str | None) -> argparse.ArgumentParser:
    """With the options that all parts have."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--dry-run", action="store_true", help="a toy on the CPU: every path, no figure of worth")
    options.add_argument("--out", type=Path, required=True, help="folder of this report's state")
    options.add_argument("--model", type=Path, required=True, help="folder of the model, made where it is not there")
    return options


def bed(options: argparse.Namespace) -> Bed:
    """From the options; figures of a dry run are kept in its own folder."""
    options.out.mkdir(parents=True, exist_ok=True)
    if options.dry_run:
        record.RESULTS = options.out
    return Bed(
        device=torch.device("cpu") if options.dry_run else torch.device("cuda", 0),
        shape=TOY if options.dry_run else gpu_models.Shape(),
        dtype="float32" if options.dry_run else "bfloat16",
        out=options.out,
        model=options.model,
        dry=options.dry_run,
    )
