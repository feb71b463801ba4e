"""The transport thread with a stand-in for the engine: streams, warm-up, health, and what a client cannot do to it."""

import queue
import tempfile
import time
from pathlib import Path

import grpc
import pytest
from shard_testkit.process import StepCall, health_stubs

from penstock_server import exit_codes, progress, service
from penstock_server.messages import PlanArrived, StepResult, Stop, StreamClosed, StreamOpened
from penstock_server.pb.shard.v1 import shard_pb2 as pb
from penstock_server.pb.shard.v1 import shard_pb2_grpc
from penstock_server.progress import Progress
from penstock_server.transport import MESSAGE_LIMIT_BYTES, Transport

TIMEOUT_SECONDS = 30
SERVING, NOT_SERVING = b"\x08\x01", b"\x08\x02"


class Server:
    """A transport, and a client beside it. The test itself is the engine: it reads `inbox`."""

    def __init__(self, folder):
        self.inbox = queue.SimpleQueue()
        self.progress = Progress()
        self.transport = Transport(folder / "s.sock", pb.InfoResponse(vocab_size=7), self.inbox, self.progress)
        limit = [("grpc.max_send_message_length", MESSAGE_LIMIT_BYTES), ("grpc.max_receive_message_length", -1)]
        self.channel = grpc.insecure_channel(f"unix:{folder / 's.sock'}", options=limit)
        self.stub = shard_pb2_grpc.ShardStub(self.channel)

    def next(self, kind):
        message = self.inbox.get(timeout=TIMEOUT_SECONDS)
        assert isinstance(message, kind), message
        return message

    def open(self, epoch=1):
        """An open stream: the client's side and the engine's."""
        call = StepCall(self.stub)
        call.send_open(epoch)
        stream = self.next(StreamOpened).stream
        stream.send_opened()
        assert next(call.responses).opened.epoch == epoch
        return call, stream

    def close(self):
        self.channel.close()
        self.transport.stop()


@pytest.fixture
def server():
    # A unix socket's path is limited to 107 bytes, which a test's own folder may exceed.
    with tempfile.TemporaryDirectory(prefix="shard-") as folder:
        server = Server(Path(folder))
        yield server
        server.close()


def result(plan_id, **columns):
    empty = dict.fromkeys(("rows", "token_ids", "logprobs", "top_ids", "top_logprobs"), b"")
    numbers = {"step_us": 33, "forward_us": 44, "next_plan_waiting": True, "num_kernels_compiled": 5}
    return StepResult(plan_id, 11, 22, **{**empty, **columns}, **numbers)


def test_plans_go_up_and_results_come_down(server):
    call, stream = server.open()
    call.send_plan(1, b"blob")
    arrived = server.next(PlanArrived)
    assert (arrived.stream, arrived.plan_id, arrived.blob) == (stream, 1, b"blob")
    assert server.transport.service.newest_plan_id == 1
    columns = {"rows": b"r", "token_ids": b"t", "logprobs": b"l", "top_ids": b"i", "top_logprobs": b"p"}
    stream.send(result(1, **columns))
    expected = pb.StepResult(
        plan_id=1,
        plan_checksum=11,
        ids_checksum=22,
        step_us=33,
        forward_us=44,
        next_plan_waiting=True,
        num_kernels_compiled=5,
        **columns,
    )
    assert call.result() == expected
    stream.end("because")
    assert call.error() == (grpc.StatusCode.INVALID_ARGUMENT, "because")


def test_messages_up_to_the_limit_pass(server):
    call, stream = server.open()
    blob = bytes(MESSAGE_LIMIT_BYTES - 1024)
    call.send_plan(1, blob)
    assert server.next(PlanArrived).blob == blob
    stream.send(result(1, rows=blob))
    assert call.result().rows == blob
    stream.end(None)
    assert call.error() == (grpc.StatusCode.OK, "")


def test_a_client_cannot_pile_up_plans(server):
    call, stream = server.open()
    for plan_id in range(1, 101):
        call.send_plan(plan_id, b"")
    for _ in range(service.MAX_UNANSWERED_PLANS):
        server.next(PlanArrived)
    with pytest.raises(queue.Empty):
        server.inbox.get(timeout=0.3)
    stream.send(result(1))
    assert call.result().plan_id == 1
    assert server.next(PlanArrived).plan_id == service.MAX_UNANSWERED_PLANS + 1
    call.cancel()


def test_a_client_that_leaves_closes_its_stream(server):
    call, stream = server.open()
    call.cancel()
    assert server.next(StreamClosed).stream is stream
    stream.send(result(1))  # the engine may not know yet
    stream.end(None)
    call, stream = server.open(epoch=2)
    call.half_close()
    assert server.next(StreamClosed).stream is stream
    stream.end(None)
    assert call.error() == (grpc.StatusCode.OK, "")


def test_the_shard_ends_when_no_router_returns(server, monkeypatch):
    monkeypatch.setattr(service, "SECONDS_WITHOUT_ROUTER", 0.2)
    monkeypatch.setattr(service, "SECONDS_TO_STOP", 3600.0)
    with pytest.raises(queue.Empty):
        server.inbox.get(timeout=0.5)  # there was no router yet: nobody is missing
    call, _ = server.open()
    call.cancel()
    server.next(StreamClosed)
    assert server.next(Stop).exit_code == exit_codes.ABANDONED


def test_a_router_that_returns_is_in_time(server, monkeypatch):
    monkeypatch.setattr(service, "SECONDS_WITHOUT_ROUTER", 1.0)
    call, _ = server.open()
    call.cancel()
    server.next(StreamClosed)
    call, _ = server.open(epoch=2)
    with pytest.raises(queue.Empty):
        server.inbox.get(timeout=1.5)
    call.cancel()


def test_warm_up_tells_its_progress_to_everybody(server):
    first = server.stub.Warmup(pb.WarmupRequest())
    assert next(first).phase == "load"
    publish = server.transport.service.publish
    publish(pb.WarmupProgress(phase="kv", fraction=0.5), pb.InfoResponse(vocab_size=8))
    assert next(first) == pb.WarmupProgress(phase="kv", fraction=0.5)
    assert server.stub.Info(pb.InfoRequest()).vocab_size == 8
    second = server.stub.Warmup(pb.WarmupRequest())
    assert next(second).phase == "kv"
    publish(pb.WarmupProgress(phase="ready", num_blocks=[5]), pb.InfoResponse())
    assert [list(message.num_blocks) for message in (*first, *second)] == [[5], [5]]


def test_health_reports_progress(server, monkeypatch):
    check, _ = health_stubs(server.channel)
    assert check(b"") == NOT_SERVING
    server.progress.ready = True
    assert check(b"") == SERVING
    monkeypatch.setattr(progress, "STALL_SECONDS", 0.1)
    server.progress.plan_launched()
    assert check(b"") == SERVING
    time.sleep(0.2)
    assert check(b"") == NOT_SERVING
    server.progress.plan_collected()
    time.sleep(0.2)
    assert check(b"") == SERVING


def test_a_socket_that_cannot_be_bound_is_a_clear_error(tmp_path):
    folder = tmp_path / ("long" * 40)
    folder.mkdir()
    with pytest.raises(ValueError, match="socket_path: cannot listen on"):
        Transport(folder / "s.sock", pb.InfoResponse(), queue.SimpleQueue(), Progress())
    with pytest.raises(ValueError, match="there is no folder"):
        Transport(tmp_path / "none" / "s.sock", pb.InfoResponse(), queue.SimpleQueue(), Progress())
