"""Real shard processes over gRPC: the rules of the Step stream, and how a shard starts and ends."""

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import grpc
import pytest
from model_testkit.tiny_llama import CASES, save
from shard_testkit.integer import IntegerReference
from shard_testkit.process import DEFAULTS, PATHS, TIMEOUT_SECONDS, Rank, ShardGroup, health_stubs, start_process
from shard_testkit.results import Result

from penstock_server import exit_codes
from penstock_server.pb.shard.v1 import shard_pb2 as pb
from penstock_server.plan_encoding import NewSeat, PlanDraft, PlanRow
from penstock_server.row_status import RowStatus

REFERENCE = IntegerReference()


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    return REFERENCE.write_config(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def shard(model_path):
    """One rank for the tests that leave it as they found it. Streams of `step` end with the test."""
    with ShardGroup(model_path) as group:
        yield group.ranks[0]


@pytest.fixture
def step(shard):
    call = shard.step()
    yield call
    call.cancel()


def epoch():
    """Above every earlier one: the clock does not stand still."""
    return time.monotonic_ns()


def first_plan(seat=0, ids=(1, 2, 3), generation=1):
    return PlanDraft(
        registrations=[NewSeat(seat, generation, len(ids), 64)],
        appends=[(seat, 0, index, 1 + index) for index in range(4)],
        rows=[PlanRow(seat, ids=ids)],
    ).encode()


def test_info_and_warm_up(shard):
    info = shard.info()
    assert (info.protocol, info.architecture, info.vocab_size) == (1, "PenstockIntegerForCausalLM", 512)
    assert (info.rank, info.num_ranks, info.device_type, info.dtype) == (0, 1, "cpu", "float32")
    (group,) = info.groups
    assert (group.kind, group.tokens_per_block, group.num_blocks) == (pb.KV_GROUP_KIND_FULL, 4, 256)
    assert group.bytes_per_block == 2 * 2 * 4 * 4 * 4
    assert list(info.decode_sizes) == [1, 2, 4, 8, 16, 32]
    assert list(info.mixed_sizes) == [8, 16, 32, 48, 64, 96]
    assert info.max_positions == DEFAULTS["max_seq_len"]
    assert info.batch_invariant
    assert list(info.features) == []
    (ready,) = shard.wait_ready()
    assert (ready.phase, list(ready.num_blocks)) == ("ready", [256])


def test_health_follows_the_service_protocol(shard):
    check, watch = health_stubs(shard.channel)
    serving, not_found = b"\x08\x01", grpc.StatusCode.NOT_FOUND
    assert check(b"") == serving
    assert check(b"\x0a\x0eshard.v1.Shard") == serving
    with pytest.raises(grpc.RpcError) as error:
        check(b"\x0a\x05other")
    assert error.value.code() == not_found
    watching = watch(b"")
    assert next(watching) == serving
    watching.cancel()


def test_a_step_over_grpc(step):
    step.open(epoch())
    step.send_plan(1, first_plan())
    step.send_plan(2, PlanDraft(rows=[PlanRow(0)]).encode())
    step.send_plan(3, PlanDraft(rows=[PlanRow(0)], same_rows=True).encode())
    results = [Result.parse(step.result()) for _ in range(3)]
    assert [token for result in results for token in result.rows[0].tokens] == REFERENCE.generate([1, 2, 3], 3)
    assert [result.rows[0].position for result in results] == [3, 4, 5]


def test_a_bad_plan_ends_the_stream_after_the_good_ones(step):
    step.open(epoch())
    step.send_plan(1, first_plan())
    step.send_plan(2, b"\0\0\0")
    assert step.result().plan_id == 1
    code, text = step.error()
    assert (code, text[:20]) == (grpc.StatusCode.INVALID_ARGUMENT, "plan 2: plan of 3 by")


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (pb.StepRequest(), "a StepRequest without a body"),
        (pb.StepRequest(open=pb.Open(epoch=1, protocol=1)), "Open in the middle of a Step stream"),
        (pb.StepRequest(mask=pb.Mask(plan_id=1)), "FEATURE_GRAMMAR_MASKS"),
        (pb.StepRequest(plan=pb.Plan(plan_id=1, adapter_loads=[pb.AdapterLoad(adapter_id=1)])), "FEATURE_ADAPTERS"),
        (pb.StepRequest(plan=pb.Plan(plan_id=1, encoder_inputs=[pb.EncoderInput()])), "FEATURE_ENCODER_INPUTS"),
        (pb.StepRequest(plan=pb.Plan(plan_id=2, blob=PlanDraft().encode())), "plan id 2, expected 1"),
        (pb.StepRequest(plan=pb.Plan(plan_id=1)), "plan of 0 bytes"),
    ],
)
def test_what_a_stream_refuses(step, request_, text):
    step.open(epoch())
    step.send(request_)
    code, details = step.error()
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert text in details


def test_an_undecodable_message_ends_the_stream_and_the_next_one_opens(shard):
    first, second = (pb.StepRequest(open=pb.Open(epoch=epoch(), protocol=1)).SerializeToString() for _ in range(2))
    for opening in (first, second):
        requests = queue.SimpleQueue()
        # A guard against hanging: shorter than the testkit's, as nothing has to start.
        answers = shard.channel.stream_stream("/shard.v1.Shard/Step")(iter(requests.get, None), timeout=30)
        requests.put(opening)
        assert pb.StepResponse.FromString(next(answers)).opened.epoch
        requests.put(b"\xff\xff\xff")
        with pytest.raises(grpc.RpcError) as error:
            next(answers)
        requests.put(None)
        assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert "a message of the Step stream could not be read" in error.value.details()


def test_a_stream_begins_with_open(step):
    step.send_plan(1, first_plan())
    assert step.error() == (grpc.StatusCode.INVALID_ARGUMENT, "the first message of a Step stream must be Open")


def test_another_protocol_is_refused(step):
    step.send_open(epoch(), protocol=2)
    code, text = step.error()
    assert (code, text) == (grpc.StatusCode.FAILED_PRECONDITION, "the router speaks protocol 2, this shard 1")


def test_one_stream_at_a_time(shard, step):
    step.open(epoch())
    second = shard.step()
    second.send_open(epoch())
    code, text = second.error()
    assert code == grpc.StatusCode.FAILED_PRECONDITION
    assert "there is one at a time" in text
    step.send_plan(1, first_plan())
    assert step.result().plan_id == 1


def test_an_epoch_is_above_the_last_one(shard):
    last = epoch()
    first = shard.step()
    first.open(last)
    first.half_close()
    assert first.error() == (grpc.StatusCode.OK, "")
    for wrong in (last, last - 1):
        call = shard.step()
        call.send_open(wrong)
        code, text = call.error()
        assert (code, text) == (grpc.StatusCode.FAILED_PRECONDITION, f"epoch {wrong} is not above the last one, {last}")


@pytest.mark.parametrize("end", ["half_close", "cancel"])
def test_a_new_stream_finds_clear_seats(shard, end):
    call = shard.step()
    call.open(epoch())
    call.send_plan(1, first_plan())
    call.result()
    getattr(call, end)()
    call.error()
    following = reopened(shard)
    following.send_plan(1, PlanDraft(rows=[PlanRow(0)]).encode())
    row = Result.parse(following.result()).rows[0]
    assert (row.generation, row.status) == (0, RowStatus.DEAD)
    following.send_plan(2, first_plan())
    assert Result.parse(following.result()).rows[0].status == RowStatus.OK
    following.cancel()


def reopened(shard):
    """A new stream, as soon as the shard has noticed that the last one is gone."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        call = shard.step()
        number = epoch()
        call.send_open(number)
        try:
            next(call.responses)
        except grpc.RpcError:
            continue
        return call
    raise AssertionError("the old stream was never closed")


def test_plans_in_flight_are_answered_after_a_half_close(shard):
    call = shard.step()
    call.open(epoch())
    call.send_plan(1, first_plan())
    for plan_id in range(2, 8):
        call.send_plan(plan_id, PlanDraft(rows=[PlanRow(0)]).encode())
    call.half_close()
    assert [response.result.plan_id for response in call.responses] == list(range(1, 8))


def test_control_refuses_what_it_does_not_know(shard):
    for request, text in (
        (pb.ControlRequest(), "Control without an action"),
        (pb.ControlRequest(log_level=pb.LogLevel(level="loud")), "log level 'loud' is not one of debug, info"),
        (pb.ControlRequest(profile=pb.Profile(num_steps=0, folder="/")), "profile needs num_steps >= 1"),
        (pb.ControlRequest(profile=pb.Profile(num_steps=1, folder="/no/such")), "an existing folder, not /no/such"),
    ):
        with pytest.raises(grpc.RpcError) as error:
            shard.stub.Control(request)
        assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert text in error.value.details()


def test_control_records_a_trace(shard, step, tmp_path):
    shard.stub.Control(pb.ControlRequest(profile=pb.Profile(num_steps=2, folder=str(tmp_path))))
    step.open(epoch())
    step.send_plan(1, first_plan())
    step.send_plan(2, PlanDraft(rows=[PlanRow(0)]).encode())
    # A third step is answered only after the second one's trace is written.
    step.send_plan(3, PlanDraft(rows=[PlanRow(0)]).encode())
    assert [step.result().plan_id for _ in range(3)] == [1, 2, 3]
    (trace,) = tmp_path.glob("*.json")
    assert json.loads(trace.read_text())["traceEvents"]


def test_sigterm_ends_a_shard_when_its_stream_is_closed(model_path):
    with ShardGroup(model_path) as group:
        group.open()
        group.submit(1, first_plan())
        group.receive()
        rank = group.ranks[0]
        rank.process.send_signal(signal.SIGINT)  # the launcher's to handle
        for plan_id in (2, 3):
            rank.process.send_signal(signal.SIGTERM)
            group.submit(plan_id, PlanDraft(rows=[PlanRow(0)]).encode())
            assert group.receive().plan_id == plan_id
        group.half_close()
        assert rank.wait() == exit_codes.OK
        assert "Traceback" not in group.log.read_text()


def test_a_stale_socket_is_replaced_and_control_ends_the_shard(model_path):
    with tempfile.TemporaryDirectory(prefix="shard-") as name:
        folder = Path(name)
        config = base_config(model_path, folder)
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(config["socket_path"])
        rank = Rank(config, folder / "log")
        rank.wait_ready()
        rank.stub.Control(pb.ControlRequest(shutdown=pb.Shutdown()))
        assert rank.wait() == exit_codes.OK
        rank.channel.close()


def test_the_death_of_a_rank_ends_the_others_step(model_path):
    """Its neighbours are in a collective with it, in a step that can never end: they must not linger."""
    with ShardGroup(model_path, num_ranks=2) as group:
        group.open()
        group.submit(1, first_plan())
        group.receive()
        group.ranks[1].process.kill()
        group.ranks[1].wait()
        group._calls[0].send_plan(2, PlanDraft(rows=[PlanRow(0)]).encode())
        assert group.ranks[0].wait() == exit_codes.FAILED


# A shard that runs out of memory in the steps that feed token 77.
FAILING = """
import os
import torch
from penstock_server.models import integer
forward = integer.IntegerModel.forward
def failing(self, batch, kv):
    if (batch.token_ids == 77).any():
        raise torch.OutOfMemoryError("no memory on this rank")
    return forward(self, batch, kv)
integer.IntegerModel.forward = failing
from penstock_server.__main__ import main
os._exit(main())
"""


def test_a_host_exception_on_one_of_several_ranks_ends_the_group(model_path):
    """Even one that a single rank would survive: the others are inside the collectives of the step that failed."""
    with ShardGroup(model_path, num_ranks=2, programs={1: ("-c", FAILING)}) as group:
        group.open()
        group.submit(1, first_plan())
        assert group.receive().rows[0].tokens == tuple(REFERENCE.generate([1, 2, 3], 1))
        group.submit(2, first_plan(seat=1, ids=(4, 77)))
        assert [rank.wait() for rank in group.ranks] == [exit_codes.FAILED] * 2
        log = group.log.read_text()
        assert "rank=1 a step failed on one of several ranks; the group ends" in log
        assert "no memory on this rank" in log


def base_config(model, folder, **changes):
    return {
        **DEFAULTS,
        "model_path": str(model),
        "socket_path": str(folder / "s.sock"),
        "rendezvous_path": str(folder / "rendezvous"),
        "parent_pid": os.getpid(),
        **changes,
    }


@pytest.mark.parametrize(
    ("changes", "code", "text"),
    [
        ({"max_rows": 0}, exit_codes.BAD_CONFIG, "shard config: max_rows 0 must be at least 1"),
        ({"rank": 1}, exit_codes.BAD_CONFIG, "shard config: rank 1 is not one of 1 ranks"),
        ({"max_rows": "many"}, exit_codes.BAD_CONFIG, "shard config key max_rows is 'many', which is none of"),
        ({"json_output": 1}, exit_codes.BAD_CONFIG, "shard config key json_output is 1, which is none of"),
        ({"num_blocks": True}, exit_codes.BAD_CONFIG, "shard config key num_blocks is True, which is none of"),
        ({"colour": 1}, exit_codes.BAD_CONFIG, "shard config: unknown shard config keys: colour"),
        ({"log_level": "loud"}, exit_codes.BAD_CONFIG, "log_level 'loud' is not one of debug, info, warning, error"),
        ({"parent_pid": 1}, exit_codes.ABANDONED, "the parent process 1 is gone"),
        ({"model_path": "/no/such/folder"}, exit_codes.BAD_MODEL, "/no/such/folder/config.json"),
        ({"socket_path": "/no/such/s.sock"}, exit_codes.BAD_MODEL, "there is no folder /no/such"),
        ({"max_seq_len": 2049}, exit_codes.BAD_MODEL, "max_seq_len 2049 exceeds the model's 2048 positions"),
        ({"num_ranks": 3}, exit_codes.BAD_MODEL, "4 key-value heads do not divide by 3 ranks"),
    ],
)
def test_a_mistake_is_one_line_and_an_exit_code(model_path, tmp_path, changes, code, text):
    process = start_process(base_config(model_path, tmp_path, **changes), tmp_path / "log")
    assert process.wait(TIMEOUT_SECONDS) == code
    (line,) = (tmp_path / "log").read_text().splitlines()
    assert text in line


def test_the_log_says_once_that_a_16_bit_checkpoint_is_computed_in_float32(tmp_path):
    save(tmp_path / "model", **CASES["tied-bfloat16"])
    with ShardGroup(tmp_path / "model") as group:
        text = "computing in float32, the default on a CPU; the checkpoint is bfloat16"
        assert group.log.read_text().count(text) == 1


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_a_config_that_is_none(tmp_path, text):
    process = start_process(text, tmp_path / "log")
    assert process.wait(TIMEOUT_SECONDS) == exit_codes.BAD_CONFIG
    (line,) = (tmp_path / "log").read_text().splitlines()
    assert line.startswith("shard config: ")


def test_logs_are_json_objects_when_asked(model_path, tmp_path):
    config = base_config(model_path, tmp_path, json_output=True, device="tpu")
    assert start_process(config, tmp_path / "log").wait(TIMEOUT_SECONDS) == exit_codes.BAD_MODEL
    (line,) = (tmp_path / "log").read_text().splitlines()
    entry = json.loads(line)
    assert (entry["level"], entry["rank"]) == ("ERROR", 0)
    assert entry["message"] == "device 'tpu' is not auto, cpu or cuda"


PARENT = """
import json, os, sys
from pathlib import Path
from shard_testkit.process import start_process
config = json.loads(sys.argv[1]) | {"parent_pid": os.getpid()}
print(start_process(config, Path(sys.argv[2])).pid, flush=True)
sys.stdin.read()
"""


def test_a_shard_dies_with_its_parent(model_path):
    with tempfile.TemporaryDirectory(prefix="shard-") as name:
        folder = Path(name)
        config = base_config(model_path, folder)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(PATHS)}
        parent = subprocess.Popen(
            [sys.executable, "-c", PARENT, json.dumps(config), str(folder / "log")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        child = int(parent.stdout.readline())
        channel = grpc.insecure_channel(f"unix:{config['socket_path']}")
        grpc.channel_ready_future(channel).result(TIMEOUT_SECONDS)
        channel.close()
        parent.kill()
        parent.communicate()
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while is_running(child):
            assert time.monotonic() < deadline, "the shard outlived its parent"
            time.sleep(0.05)


def is_running(pid):
    """Neither gone nor a zombie that nobody has waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
