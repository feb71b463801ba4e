"""Real shard processes, and a client that drives a group of them over gRPC as the router does."""

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc

import penstock_kernels
import penstock_server
from penstock_server.pb.shard.v1 import shard_pb2 as pb
from penstock_server.pb.shard.v1 import shard_pb2_grpc
from penstock_server.plan_checks import PROTOCOL_VERSION
from shard_testkit.results import Result

# Only a guard against hanging: a loaded machine may take this long to start a rank.
TIMEOUT_SECONDS = 120
PATHS = [str(Path(package.__path__[0]).parent) for package in (penstock_server, penstock_kernels)]
# Arguments of python that start a shard.
SHARD = ("-m", "penstock_server")

DEFAULTS: dict[str, Any] = {
    "rank": 0,
    "num_ranks": 1,
    "dtype": "auto",
    "load_format": "auto",
    "device": "cpu",
    "all_reduce": "library",
    "tokens_per_block": 4,
    "num_blocks": 256,
    "max_rows": 32,
    "max_step_tokens": 96,
    "max_seq_len": 128,
    "num_seats": 48,
    "num_penalty_lanes": 4,
    "step_depth": 2,
    "num_threads": 1,
    "log_level": "info",
    "json_output": False,
    "fill_kv_with_nan": True,
}


def start_process(config: dict[str, Any] | str, log: Path, program: Sequence[str] = SHARD) -> subprocess.Popen[bytes]:
    """Starts `python -m penstock_server`, or another program, with a config (as JSON), its standard error in `log`."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(PATHS)}
    with log.open("ab") as errors:
        process = subprocess.Popen(
            [sys.executable, "-P", *program],
            stdin=subprocess.PIPE,
            stdout=errors,
            stderr=errors,
            env=environment,
        )
    assert process.stdin is not None
    process.stdin.write((config if isinstance(config, str) else json.dumps(config)).encode())
    process.stdin.close()
    return process


class StepCall:
    """One open Step stream of one rank."""

    def __init__(self, stub: shard_pb2_grpc.ShardStub) -> None:
        self._requests: queue.SimpleQueue[pb.StepRequest | None] = queue.SimpleQueue()
        self.responses = stub.Step(iter(self._requests.get, None), timeout=TIMEOUT_SECONDS)

    def send(self, request: pb.StepRequest) -> None:
        self._requests.put(request)

    def send_open(self, epoch: int, protocol: int = PROTOCOL_VERSION) -> None:
        self.send(pb.StepRequest(open=pb.Open(epoch=epoch, protocol=protocol)))

    def send_plan(self, plan_id: int, blob: bytes) -> None:
        self.send(pb.StepRequest(plan=pb.Plan(plan_id=plan_id, blob=blob)))

    def open(self, epoch: int) -> None:
        self.send_open(epoch)
        assert next(self.responses).opened.epoch == epoch

    def result(self) -> pb.StepResult:
        return next(self.responses).result

    def half_close(self) -> None:
        self._requests.put(None)

    def error(self) -> tuple[grpc.StatusCode, str]:
        """The status with which the stream ended, after the answers still on their way."""
        try:
            for _ in self.responses:
                pass
        except grpc.RpcError as error:
            return error.code(), error.details()
        return grpc.StatusCode.OK, ""

    def cancel(self) -> None:
        self.responses.cancel()
        self._requests.put(None)


class Rank:
    """One shard process and its stub."""

    def __init__(self, config: dict[str, Any], log: Path, program: Sequence[str] = SHARD) -> None:
        """`program`: as in `start_process`."""
        self.process = start_process(config, log, program)
        self.channel = grpc.insecure_channel(f"unix:{config['socket_path']}")
        self.stub = shard_pb2_grpc.ShardStub(self.channel)

    def wait_ready(self) -> list[pb.WarmupProgress]:
        """Waits for the end of the warm-up; returns its messages."""
        request = pb.WarmupRequest()
        return list(self.stub.Warmup(request, wait_for_ready=True, timeout=TIMEOUT_SECONDS))

    def info(self) -> pb.InfoResponse:
        return self.stub.Info(pb.InfoRequest(), wait_for_ready=True, timeout=TIMEOUT_SECONDS)

    def step(self) -> StepCall:
        return StepCall(self.stub)

    def wait(self) -> int:
        """The exit code; does not wait for ever."""
        return self.process.wait(TIMEOUT_SECONDS)


class ShardGroup:
    """All ranks of one model, ready when the `with` block begins, gone when it ends."""

    def __init__(
        self,
        model_path: Path,
        num_ranks: int = 1,
        programs: Mapping[int, Sequence[str]] | None = None,
        **changes: Any,
    ) -> None:
        """`programs`: what some ranks run instead of the shard, as in `start_process`; `changes`: of the config."""
        self._model_path, self._num_ranks, self._changes = model_path, num_ranks, changes
        self._programs = programs or {}
        self._epoch = 0
        self.folder = Path()
        self.ranks: list[Rank] = []
        self._calls: list[StepCall] = []

    def config(self, rank: int) -> dict[str, Any]:
        return {
            **DEFAULTS,
            "model_path": str(self._model_path),
            "rank": rank,
            "num_ranks": self._num_ranks,
            "socket_path": str(self.folder / f"shard-{rank}.sock"),
            "rendezvous_path": str(self.folder / "rendezvous"),
            "parent_pid": os.getpid(),
            **self._changes,
        }

    def __enter__(self) -> Self:
        # A short path: a unix socket's is limited to 107 bytes.
        self._temporary = tempfile.TemporaryDirectory(prefix="shard-")
        self.folder = Path(self._temporary.name)
        self.ranks = [
            Rank(self.config(rank), self.log, self._programs.get(rank, SHARD)) for rank in range(self._num_ranks)
        ]
        try:
            for rank in self.ranks:
                rank.wait_ready()
        except grpc.RpcError as error:
            self.__exit__(None, None, None)
            raise AssertionError(f"a rank did not start: {error}") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and self.log.exists():
            print(self.log.read_text())
        for rank in self.ranks:
            rank.channel.close()
            if rank.process.poll() is None:
                rank.process.send_signal(signal.SIGKILL)
            rank.wait()
        self._temporary.cleanup()

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def open(self) -> None:
        """Opens a new Step stream on every rank."""
        self._calls = [rank.step() for rank in self.ranks]
        # By the clock, as in the router, which may have driven these shards in between.
        self._epoch = max(self._epoch + 1, time.time_ns() // 1_000_000)
        for call in self._calls:
            call.send_open(self._epoch)
        for call in self._calls:
            assert next(call.responses).opened.epoch == self._epoch

    def submit(self, plan_id: int, blob: bytes) -> None:
        for call in self._calls:
            call.send_plan(plan_id, blob)

    def receive(self) -> Result:
        """Rank 0's answer, after comparing every rank's acknowledgement with it."""
        first, *others = [call.result() for call in self._calls]
        for other in others:
            assert (other.plan_id, other.plan_checksum) == (first.plan_id, first.plan_checksum)
            assert other.ids_checksum == first.ids_checksum, "the ranks hold different ids"
            assert not other.rows
            assert not other.token_ids
        return Result.parse(first)

    def half_close(self) -> None:
        """Ends the streams well."""
        for call in self._calls:
            call.half_close()
            assert call.error() == (grpc.StatusCode.OK, "")


def health_stubs(channel: grpc.Channel) -> tuple[Any, Any]:
    """`Check` and `Watch` of grpc.health.v1, on raw bytes."""
    return (
        channel.unary_unary("/grpc.health.v1.Health/Check"),
        channel.unary_stream("/grpc.health.v1.Health/Watch"),
    )


def lines_of(log: Path) -> Iterator[str]:
    yield from log.read_text().splitlines()
