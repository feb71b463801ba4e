"""An engine in this process, over the integer model or any other."""

import queue
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from penstock_server import kv_cache
from penstock_server.batch import BatchBuilder, StagedStep
from penstock_server.device_thread import DeviceThread
from penstock_server.engine import Engine, EngineHooks, Ticket
from penstock_server.graphs import Forwarded, ForwardPart, Graphs
from penstock_server.models.base import Model
from penstock_server.models.integer import IntegerConfig, IntegerModel
from penstock_server.parallel import TensorParallel
from penstock_server.plan import RowSet, decode_plan
from penstock_server.plan_checks import PlanLimits
from penstock_server.plan_encoding import PlanDraft
from penstock_server.sampling import Sampler, SamplerSizes
from penstock_server.seats import DeviceSeats
from penstock_server.sizes import blocks_per_seat, decode_sizes, mixed_sizes
from penstock_server.staging import Staging, StepShape
from penstock_server.step import StepParts
from penstock_server.warmup import warm_up
from shard_testkit.integer import IntegerReference
from shard_testkit.results import Result

CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class EngineSizes:
    num_seats: int = 48
    num_blocks: int = 256
    tokens_per_block: int = 4
    max_rows: int = 32
    max_tokens: int = 96
    max_seq_len: int = 128
    num_penalty_lanes: int = 4
    depth: int = 2


def integer_model(reference: IntegerReference, folder: Path, device: torch.device = CPU) -> IntegerModel:
    """The real model of a reference, on one rank."""
    config = IntegerConfig.from_folder(reference.write_config(folder))
    return IntegerModel(config, TensorParallel(0, 1, None, device), device)


class InlineThread(DeviceThread):
    """Runs jobs where they are submitted, so that a test can watch them."""

    def __init__(self) -> None:
        pass

    def submit(self, job: Callable[[], None]) -> None:
        job()

    def close(self) -> None:
        pass


class HostCapture:
    """Captures without a device: a replay is the same call over the same buffers, and has of the step that was captured
    what a graph would have, so nothing on the host that differs from step to step.
    """

    def __call__(self, function: ForwardPart, staged: StagedStep) -> tuple[Callable[[], None], Forwarded]:
        nothing: Any = None
        kept = replace(staged, host_seq_lens=nothing, host_query_lens=nothing, host_sample_seats=nothing)
        result = function(kept)

        def replay() -> None:
            again = function(kept)
            for mine, theirs in ((result.row_seats, again.row_seats), (result.hidden, again.hidden)):
                mine.copy_(theirs)
            if result.logits is not None and again.logits is not None:
                result.logits.copy_(again.logits)

        return replay, result


class LocalEngine:
    """An `Engine` with its KV pool full of NaN, fed with blobs; answers come in order."""

    def __init__(self, model: Model, sizes: EngineSizes, inline: bool = False, device: torch.device = CPU) -> None:
        """`inline`: steps run on the calling thread, inside `submit`. `device`: that of the model."""
        self._device = device
        width = blocks_per_seat(sizes.max_seq_len, sizes.tokens_per_block)
        self.limits = PlanLimits(
            num_seats=sizes.num_seats,
            num_penalty_lanes=sizes.num_penalty_lanes,
            num_blocks=sizes.num_blocks,
            blocks_per_seat=width,
            vocab_size=model.vocab_size,
            max_rows=sizes.max_rows,
            max_tokens=sizes.max_tokens,
            max_seq_len=sizes.max_seq_len,
            max_top_logprobs=5,
            decode_sizes=decode_sizes(sizes.max_rows),
            mixed_sizes=mixed_sizes(sizes.max_tokens),
        )
        self.kv = kv_cache.allocate(model.kv_spec, sizes.num_blocks, sizes.tokens_per_block, device)
        self.kv.fill(float("nan"))
        largest = StepShape(sizes.max_rows, sizes.max_tokens, sizes.max_rows, width, decode=False)
        self.parts = StepParts(
            model=model,
            kv=self.kv,
            seats=DeviceSeats(sizes.num_seats, width, device),
            sampler=Sampler(
                SamplerSizes(sizes.num_seats, sizes.num_penalty_lanes, model.vocab_size, sizes.max_rows, 5), device
            ),
            parallel=TensorParallel(0, 1, None, device),
            staging=Staging(largest, sizes.depth + 1, device),
        )
        self.thread = InlineThread() if inline else DeviceThread()
        self.steps_done: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.newest_plan_id = 0
        hooks = EngineHooks(
            step_done=lambda: self.steps_done.put(None),
            newest_plan_id=lambda: self.newest_plan_id,
            group_failed=lambda error: None,
        )
        self.engine = Engine(self.parts, self.limits, hooks, self.thread)
        self.previous: RowSet | None = None
        self.tickets: list[Ticket] = []
        self._next_plan_id = 1

    def replay_steps(self) -> None:
        """From here on steps are built and run as where graphs can be captured. Captures come with `warm_up`."""
        limits = self.limits
        self.engine._builder = BatchBuilder(limits.decode_sizes, limits.mixed_sizes, limits.vocab_size, True)
        runner = self.engine._runner
        runner.graphs = Graphs(runner._forward, HostCapture())
        for results in runner._results:
            results.receive = torch.clone  # type: ignore[method-assign] # the next replay overwrites them

    def warm_up(self) -> None:
        """Runs every size as the shard does before it serves, which captures graphs; then the pool is NaN again."""
        warm_up(self.engine, self._device.type, lambda fraction: None)
        self.engine.fill_kv(float("nan"))

    def submit(self, plan_id: int, blob: bytes) -> None:
        plan = decode_plan(plan_id, blob, self.previous, self.limits)
        self.previous = plan.rows
        self.newest_plan_id = plan_id
        self.tickets.append(self.engine.launch(plan))

    def receive(self) -> Result:
        return Result.parse(self.engine.collect(self.tickets.pop(0)))

    def run(self, draft: PlanDraft) -> Result:
        """One plan, start to end."""
        self.start(draft)
        return self.receive()

    def start(self, draft: PlanDraft) -> None:
        """Launches one plan."""
        self.submit(self._next_plan_id, draft.encode())
        self._next_plan_id += 1

    def close(self) -> None:
        self.thread.close()
