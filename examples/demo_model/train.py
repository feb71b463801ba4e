"""Trains the bundled demo model from nothing, resumes from checkpoints, and writes its files.

`python examples/demo_model/train.py --out FOLDER --checkpoints FOLDER` does everything. Text comes
from generate.py; the published scores come from evaluate.py.
"""

import argparse
import os
import time
from dataclasses import asdict
from pathlib import Path

# Read when torch and tokenizers are imported. Waiting threads must not spin on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import batches
import torch
import torch.nn.functional as F
from batches import Stage
from exam import quick_check
from model import Llama, document_mask
from run import Run
from threads import ThreadGovernor
from torch import Tensor

# A GPU is fed with larger steps, as many of them for its more tokens.
SIZE_ON_GPU = 16
WARMUP_STEPS = 120
# The last share of the steps brings the rate down to nothing.
DECAY_SHARE = 0.3
SEED = 1
LOG_EVERY_STEPS = 100


def stages(options: argparse.Namespace) -> list[Stage]:
    """Nine tenths of the tokens in short rows, then long ones up to half of the context."""
    size = SIZE_ON_GPU if options.device.type == "cuda" else 1
    tokens = options.million_tokens * 1_000_000
    return [Stage(256, 12 * size, 2, tokens * 9 // 10), Stage(1024, 3 * size, 10, tokens // 10)]


def rate_scale(all_stages: list[Stage], stage: int, step: int) -> float:
    """Warm-up, full rate, then a straight line down to nothing at the end of the last stage."""
    total = sum(stage.num_steps for stage in all_stages)
    done = sum(stage.num_steps for stage in all_stages[:stage]) + step
    return min(1.0, (done + 1) / WARMUP_STEPS, (total - done) / (total * DECAY_SHARE))


def weighted_loss(model: Llama, batch: batches.Tensors) -> Tensor:
    table = model.table()
    with torch.autocast(table.device.type, dtype=torch.bfloat16):
        hidden = model(batch.ids, document_mask(batch.owners), table).flatten(0, 1)
        logits = F.linear(hidden.index_select(0, batch.positions), table)
    losses = F.cross_entropy(logits.float(), batch.targets, reduction="none")
    return (losses * batch.weights).sum() / batch.weights.sum()


def train_stage(run: Run, options: argparse.Namespace, governor: ThreadGovernor) -> None:
    """Trains from the run's step to the end of its stage."""
    all_stages = stages(options)
    stage = all_stages[run.stage]
    compiled = torch.compile(weighted_loss, dynamic=False)
    stream = batches.steps(run.tokenizer, stage, SEED + run.stage, run.step, options.workers)
    saved = checked = printed = time.monotonic()
    losses = []
    while run.step < stage.num_steps:
        loss = compiled(run.model, next(stream).tensors(run.device))
        loss.backward()
        run.optimizer.step(rate_scale(all_stages, run.stage, run.step))
        run.advance(stage.tokens_per_step)
        losses.append(loss.detach())
        now = time.monotonic()
        if len(losses) == LOG_EVERY_STEPS:
            speed = LOG_EVERY_STEPS * stage.tokens_per_step / (now - printed)
            print(_progress(run, stage, torch.stack(losses).mean().item(), speed), flush=True)
            losses, printed = [], now
            governor.adjust()
        if now - saved > options.save_every_s or run.step == stage.num_steps:
            run.seconds, saved = run.seconds + now - saved, now
            run.save()
        if now - checked > options.check_every_s:
            checked = now
            check_and_write(run)


def _progress(run: Run, stage: Stage, loss: float, speed: float) -> str:
    return (
        f"stage {run.stage} step {run.step}/{stage.num_steps} tokens {run.tokens / 1e6:.2f}M "
        f"loss {loss:.4f} {speed:.0f} tok/s {torch.get_num_threads()} threads"
    )


def check_and_write(run: Run) -> None:
    """Scores and exports the averaged weights."""
    run.optimizer.swap_average()
    result = quick_check(run.model, run.tokenizer)
    print(f"check at {run.tokens / 1e6:.2f}M: {result}", flush=True)
    run.write_model()
    run.optimizer.swap_average()


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--checkpoints", type=Path, default=Path.home() / ".cache/penstock-demo")
    parser.add_argument("--device", type=torch.device, default=default_device())
    parser.add_argument("--million-tokens", type=int, default=20)
    parser.add_argument("--workers", type=int, default=0, help="processes that make the text; 0: this one")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save-every-s", type=float, default=180)
    parser.add_argument("--check-every-s", type=float, default=420)
    options = parser.parse_args()
    governor = ThreadGovernor(options.threads)
    run = Run(options.out, options.checkpoints, SEED, options.device)
    print(f"{sum(p.numel() for p in run.model.parameters())} parameters, {asdict(run.model.shape)}")
    while run.stage < len(stages(options)):
        train_stage(run, options, governor)
        run.stage, run.step = run.stage + 1, 0
        run.save()
    check_and_write(run)


if __name__ == "__main__":
    main()
