"""A grpcio client against the real server, on the port of HTTP; and the examples, as they stand there."""

import subprocess
import sys
import time

import grpc
import httpx
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status
from harness.client import TIMEOUT_S, body, generate, metric
from harness.launcher import ROOT, Launcher, environment, eventually
from harness.models import POSITIONS, integer_answer

import penstock_server.pb.penstock.v1 as penstock

EXAMPLES = ROOT / "examples" / "grpc"
# Seconds of work, left alone.
LONG = POSITIONS - 100


@pytest.fixture(scope="module")
def launcher(tmp_path_factory, endless_folder):
    """A model whose answers have full length."""
    with Launcher(tmp_path_factory.mktemp("grpc"), "--model-id", str(endless_folder)) as launcher:
        launcher.url = launcher.wait_until_ready()
        yield launcher
        assert launcher.stop() == 0


@pytest.fixture(scope="module")
def url(launcher):
    return launcher.url


@pytest.fixture(scope="module")
def channel(url):
    with grpc.insecure_channel(url.removeprefix("http://")) as channel:
        yield channel


@pytest.fixture(scope="module")
def service(channel):
    return penstock.GenerationStub(channel)


def request(prompt, num_tokens, **parameters):
    parameters = penstock.Parameters(max_new_tokens=num_tokens, details=True, **parameters)
    return penstock.GenerateRequest(inputs=prompt, parameters=parameters)


def wait_for_quiet(url):
    names = ("penstock_kv_blocks_used", "penstock_running_requests")
    eventually(lambda: not any(metric(url, name) for name in names), 10, "every block is free")


def test_tokens_are_those_of_http(service, url):
    expected = integer_answer("hello", 12, eos=None)
    whole = service.Generate(request("hello", 12), timeout=TIMEOUT_S)
    assert [token.id for token in whole.details.tokens] == expected
    assert whole.details.finish_reason == penstock.FinishReason.FINISH_REASON_LENGTH
    messages = list(service.GenerateStream(request("hello", 12), timeout=TIMEOUT_S))
    assert [message.token.id for message in messages] == expected
    assert messages[-1].generated_text == whole.generated_text
    assert generate(url, body("hello", 12)).ids == expected

    drawn = {"do_sample": True, "seed": 3, "top_k": 50}
    sampled = service.Generate(request("hello", 12, **drawn), timeout=TIMEOUT_S)
    answer = httpx.post(f"{url}/generate", json=body("hello", 12, **drawn), timeout=TIMEOUT_S).json()
    assert [token.id for token in sampled.details.tokens] == [token["id"] for token in answer["details"]["tokens"]]
    assert sampled.generated_text == answer["generated_text"]


def test_a_deadline_of_100_ms_is_met(service, url):
    begin = time.monotonic()
    with pytest.raises(grpc.RpcError) as raised:
        service.Generate(request("a", LONG), timeout=0.1)
    assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    with pytest.raises(grpc.RpcError) as raised:
        list(service.GenerateStream(request("a", LONG), timeout=0.1))
    assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    # A hang guard: each is over after 100 ms.
    assert time.monotonic() - begin < 10
    wait_for_quiet(url)


def test_a_cancelled_call_frees_its_blocks(service, url):
    stream = service.GenerateStream(request("a", LONG))
    assert next(stream).index == 1
    assert metric(url, "penstock_kv_blocks_used") > 0
    stream.cancel()
    wait_for_quiet(url)
    call = service.Generate.future(request("a", LONG))
    eventually(lambda: metric(url, "penstock_kv_blocks_used") > 0, 30, "the call runs")
    call.cancel()
    wait_for_quiet(url)


def test_an_error_names_the_field(service):
    with pytest.raises(grpc.RpcError) as raised:
        service.Generate(request("a", 5, temperature=0))
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    details = {any_.TypeName(): any_ for any_ in rpc_status.from_call(raised.value).details}
    refused = error_details_pb2.BadRequest()
    assert details["google.rpc.BadRequest"].Unpack(refused)
    assert [violation.field for violation in refused.field_violations] == ["temperature"]


def test_reflection_lists_the_services(channel):
    services = ProtoReflectionDescriptorDatabase(channel).get_services()
    assert {"penstock.v1.Generation", "grpc.health.v1.Health"} <= set(services)


def test_health_info_and_tokens(channel, service, url):
    check = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service="penstock.v1.Generation"))
    assert check.status == health_pb2.HealthCheckResponse.SERVING
    info = service.Info(penstock.InfoRequest())
    assert info.max_total_tokens == httpx.get(f"{url}/info", timeout=TIMEOUT_S).json()["max_total_tokens"]
    tokens = service.Tokenize(penstock.TokenizeRequest(inputs="né")).tokens
    assert [(token.text, token.start, token.stop) for token in tokens] == [("n", 0, 1), ("é", 1, 3), ("é", 1, 3)]


def run(folder, example, url, *arguments):
    command = [sys.executable, EXAMPLES / example, url.removeprefix("http://"), *arguments]
    options = {"capture_output": True, "timeout": TIMEOUT_S, "check": False}
    done = subprocess.run(command, env=environment(folder), **options)
    assert done.returncode == 0, done.stderr
    # Decoded here: text mode would translate the carriage returns of this model.
    return done.stdout.decode()


def whole_text(service, prompt, num_tokens):
    return service.Generate(request(prompt, num_tokens), timeout=TIMEOUT_S).generated_text


def test_the_examples_run(service, url, tmp_path):
    assert run(tmp_path, "generate.py", url, "one") == whole_text(service, "one", 40) + "\n"
    assert run(tmp_path, "stream_async.py", url, "one", "two") == "".join(
        whole_text(service, prompt, 20) + "\n" for prompt in ("one", "two")
    )
    streamed = run(tmp_path, "stream.py", url, "one").removesuffix("\n")
    assert streamed
    assert whole_text(service, "one", 20).startswith(streamed)
    wait_for_quiet(url)
