"""Puts one shard together from its config, serves until told to stop, and returns the exit code."""

import gc
import logging
import os
import queue
import signal
import sys
from types import FrameType

import torch

from penstock_server import exit_codes, kv_cache, logs, models
from penstock_server.config import ShardConfig
from penstock_server.device_thread import DeviceThread
from penstock_server.engine import Engine, EngineHooks
from penstock_server.info import ShardFacts, info_response
from penstock_server.loop import EngineLoop
from penstock_server.messages import Message, StepDone, Stop
from penstock_server.models.base import Model
from penstock_server.models.source import ModelSource
from penstock_server.parallel import Split, TensorParallel
from penstock_server.pb.shard.v1 import shard_pb2
from penstock_server.progress import Progress, StartPhases
from penstock_server.sampling import Sampler, SamplerSizes
from penstock_server.seats import DeviceSeats
from penstock_server.sizes import blocks_per_seat, plan_limits
from penstock_server.staging import Staging, StepShape
from penstock_server.step import StepParts
from penstock_server.transport import Transport
from penstock_server.warmup import measure_steps, warm_up

logger = logging.getLogger(__name__)

# How long a thread may hold the interpreter while another waits. Python's 5 ms would delay a step's answer by that.
SWITCH_INTERVAL_SECONDS = 0.0005
_FEWEST_BLOCKS = 2


def run(config: ShardConfig) -> int:
    """Serves until told to stop; returns an exit code. What a user can put right is one line in the log."""
    logs.set_up(config.log_level, config.json_output, config.rank)
    try:
        shard = Shard(config)
    except (ValueError, FileNotFoundError) as error:
        logger.error("%s", error)  # noqa: TRY400 - a traceback would hide the line that says what to change
        return exit_codes.BAD_MODEL
    except Exception:
        logger.exception("the shard could not start")
        return exit_codes.FAILED
    try:
        return shard.serve()
    except Exception:
        logger.exception("the shard failed")
        return exit_codes.FAILED


class Shard:
    """One rank: the transport thread, the device thread, and the engine loop on the thread that made it."""

    def __init__(self, config: ShardConfig) -> None:
        """Ready to serve when it returns. Raises ValueError for what the model folder or the config does not allow."""
        self._config = config
        self._progress = Progress()
        self._phases = StartPhases(self._progress.started_at)
        self._phases.end("import")
        self._device = pick_device(config)
        split = Split(config.rank, config.num_ranks)
        self._description = models.describe(config.model_path, split, self._device, config.dtype)
        if config.max_seq_len > self._description.max_positions:
            positions = self._description.max_positions
            raise ValueError(f"max_seq_len {config.max_seq_len} exceeds the model's {positions} positions")
        if self._description.float32_reason is not None:
            logger.info("%s", self._description.float32_reason)
        self._phases.end("config")
        self._inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._facts = self._shard_facts()
        self._weight_bytes = 0
        self._limits = plan_limits(config, config.num_blocks or 0, self._description.vocab_size)
        self._transport = Transport(config.socket_path, self._info(ready=False), self._inbox, self._progress)
        self._phases.end("listen")
        self._thread = DeviceThread()
        self._engine = self._thread.call(self._start_engine) if self._device.type == "cpu" else self._start_engine()
        self._warm_up()

    def serve(self) -> int:
        """Runs the engine loop until it is told to stop; returns the exit code."""
        signal.signal(signal.SIGTERM, self._on_sigterm)
        # Everything alive now lives as long as the process: the collector need not look at it again, and from here on
        # runs only when the loop is idle.
        gc.collect()
        gc.freeze()
        gc.disable()
        sys.setswitchinterval(SWITCH_INTERVAL_SECONDS)
        self._engine.expect_no_compilation()
        self._progress.ready = True
        self._publish("ready", 1.0)
        self._log_ready()
        code = EngineLoop(self._engine, self._inbox, self._config.step_depth, self._progress).run()
        self._transport.stop()
        return code

    def _log_ready(self) -> None:
        phases, gigabytes = self._phases, self._weight_bytes / 1e9
        phases.end("rest")
        rate = gigabytes / phases.seconds["weights"]
        fields = {
            "ready_seconds": phases.total,
            "phase_seconds": phases.seconds,
            "weight_gigabytes_per_second": rate,
            "num_blocks": self._limits.num_blocks,
        }
        text = "ready in %.2f s: %s; %.2f GB of weights at %.2f GB/s, %d blocks"
        logger.info(text, phases.total, phases, gigabytes, rate, self._limits.num_blocks, extra={"fields": fields})

    def _shard_facts(self) -> ShardFacts:
        spec = self._description.kv_spec
        return ShardFacts(
            architecture=self._description.architecture,
            dtype=str(spec.dtype).removeprefix("torch."),
            device_type=self._device.type,
            max_positions=self._description.max_positions,
            bytes_per_block=kv_cache.bytes_per_block(spec, self._config.tokens_per_block),
        )

    def _start_engine(self) -> Engine:
        """On the thread that will run the steps, so that torch has one team of threads."""
        config, device = self._config, self._device
        torch.set_num_threads(config.num_threads)
        symmetric = config.all_reduce == "symmetric"
        parallel = TensorParallel(config.rank, config.num_ranks, config.rendezvous_path, device, symmetric)
        self._phases.end("connect")
        source = ModelSource(config.model_path, device, config.dtype, config.load_format, self._weights_read)
        model = models.load(source, parallel)
        self._phases.end("weights")
        self._publish("kv", 0.0)
        num_blocks = config.num_blocks or self._measure_blocks(model, parallel)
        self._limits = plan_limits(config, num_blocks, model.vocab_size)
        self._phases.end("measure")
        kv = kv_cache.allocate(model.kv_spec, num_blocks, config.tokens_per_block, device)
        engine = Engine(self._parts(model, kv, parallel), self._limits, self._hooks(), self._thread)
        self._phases.end("kv")
        return engine

    def _weights_read(self, fraction: float, num_bytes: int) -> None:
        self._weight_bytes = num_bytes
        self._publish("load", fraction)

    def _parts(self, model: Model, kv: kv_cache.KvCache, parallel: TensorParallel) -> StepParts:
        config, limits, device = self._config, self._limits, self._device
        largest = StepShape(
            num_rows=limits.max_rows,
            num_tokens=limits.max_tokens,
            num_samples=limits.max_rows,
            table_width=limits.blocks_per_seat,
            decode=False,
        )
        sampler = None
        if parallel.rank == 0:
            sizes = SamplerSizes(
                num_seats=limits.num_seats,
                num_lanes=limits.num_penalty_lanes,
                vocab_size=limits.vocab_size,
                max_rows=limits.max_rows,
                max_top_logprobs=limits.max_top_logprobs,
            )
            sampler = Sampler(sizes, device)
        return StepParts(
            model=model,
            kv=kv,
            seats=DeviceSeats(limits.num_seats, limits.blocks_per_seat, device),
            sampler=sampler,
            parallel=parallel,
            # One entry more than plans in flight: the next step is built while the oldest may still be read.
            staging=Staging(largest, config.step_depth + 1, device),
        )

    def _hooks(self) -> EngineHooks:
        done = StepDone()
        return EngineHooks(
            step_done=lambda: self._inbox.put(done),
            newest_plan_id=lambda: self._transport.service.newest_plan_id,
            group_failed=end_group,
        )

    def _warm_up(self) -> None:
        self._publish("graphs", 0.0)
        self._batch_invariant = warm_up(
            self._engine, self._device.type, lambda part: self._publish("graphs", part), self._phases.end
        )
        if self._config.fill_kv_with_nan:
            self._engine.fill_kv(float("nan"))  # only now: the warm-up has written to the pool

    def _measure_blocks(self, model: Model, parallel: TensorParallel) -> int:
        """As many blocks as the memory of every rank holds, no more than all seats can use."""
        config, device = self._config, self._device
        useful = config.num_seats * blocks_per_seat(config.max_seq_len, config.tokens_per_block) + 1
        step_bytes = 0
        if device.type == "cuda":
            step_bytes = self._measure_steps(model, parallel)
            gc.collect()
            torch.cuda.empty_cache()
            logger.info("steps and their buffers take %.2f GiB of the GPU's memory", step_bytes / (1 << 30))
        num_blocks = kv_cache.blocks_that_fit(self._facts.bytes_per_block, useful, device, step_bytes)
        counts = parallel.all_gather(torch.tensor([num_blocks], device=self._device))
        return int(counts.min().item())

    def _measure_steps(self, model: Model, parallel: TensorParallel) -> int:
        """Bytes of steps and of the buffers that stay, the sampler's above all, in an engine whose KV cache is but the
        scratch block and one more.
        """
        config = self._config
        before = torch.cuda.memory_allocated(self._device)
        self._limits = plan_limits(config, _FEWEST_BLOCKS, model.vocab_size)
        kv = kv_cache.allocate(model.kv_spec, _FEWEST_BLOCKS, config.tokens_per_block, self._device)
        engine = Engine(self._parts(model, kv, parallel), self._limits, self._hooks(), self._thread)
        buffers = torch.cuda.memory_allocated(self._device) - before
        try:
            return buffers + measure_steps(engine, self._device)
        except torch.OutOfMemoryError as error:
            sizes = f"max_step_tokens {config.max_step_tokens}, max_rows {config.max_rows}"
            raise ValueError(f"the GPU has no memory for the largest step beside the weights: {sizes}") from error

    def _info(self, ready: bool) -> shard_pb2.InfoResponse:
        invariant = ready and self._batch_invariant
        return info_response(self._config, self._facts, self._limits, ready, invariant)

    def _publish(self, phase: str, fraction: float) -> None:
        """Tells whoever waits in Warmup."""
        ready = phase == "ready"
        warmup = shard_pb2.WarmupProgress(
            phase=phase,
            fraction=fraction,
            elapsed_ms=self._progress.elapsed_ms(),
            num_blocks=[self._limits.num_blocks] if ready else [],
        )
        self._transport.service.publish(warmup, self._info(ready))

    def _on_sigterm(self, number: int, frame: FrameType | None) -> None:
        # Whoever signals all processes of a service means a drain: the router closes the stream when it has drained.
        self._inbox.put(Stop(exit_codes.OK, "SIGTERM", after_stream=True))


def pick_device(config: ShardConfig) -> torch.device:
    """The device of this rank. Raises ValueError when it is not there."""
    if config.device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device {config.device!r} is not auto, cpu or cuda")
    num_gpus = torch.cuda.device_count() if config.device != "cpu" else 0
    if config.device == "cpu" or (config.device == "auto" and num_gpus == 0):
        return torch.device("cpu")
    if config.rank >= num_gpus:
        raise ValueError(f"rank {config.rank} needs a GPU of its own; this machine shows {num_gpus}")
    torch.cuda.set_device(config.rank)
    return torch.device("cuda", config.rank)


def end_group(error: Exception) -> None:
    """A step failed on this rank only: the others wait for it in a collective until this process is gone."""
    logger.error("a step failed on one of several ranks; the group ends", exc_info=error)
    logging.shutdown()
    os._exit(exit_codes.FAILED)
