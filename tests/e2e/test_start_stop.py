"""Start, ready, stop: what a person or a supervisor sees of one healthy launcher."""

import contextlib
import json
import os
import re
import signal
import subprocess
import threading
import time

import httpx
import pytest
from harness.client import Answer, body, events, generate
from harness.launcher import alive, environment, eventually
from harness.models import integer_answer


def test_it_starts_answers_and_drains_to_exit_code_0(launch, integer_folder):
    launcher = launch("--model-id", integer_folder)
    url = launcher.wait_until_ready()
    family = launcher.family()
    assert len(family) == 2, "one shard and one router"
    answer = generate(url, body("once upon a time", 40))
    assert answer.ids == integer_answer("once upon a time", 40)
    assert launcher.stop() == 0
    assert not any(map(alive, family))
    assert launcher.leftovers() == []


def test_each_shard_logs_where_the_time_of_its_start_went(launch, llama_folder):
    launcher = launch("--model-id", llama_folder, "--num-shard", "2", "--json-output")
    served = float(launcher.wait_for_line(r"served on .* after ([\d.]+) s").group(1))
    assert launcher.stop() == 0
    lines = [json.loads(line) for line in launcher.lines if '"phase_seconds"' in line]
    assert sorted(line["rank"] for line in lines) == [0, 1]
    phases = {"import", "config", "listen", "connect", "weights", "measure", "kv", "kernels", "graphs"}
    for line in lines:
        assert set(line["phase_seconds"]) == phases | {"probes", "rest"}
        assert sum(line["phase_seconds"].values()) == pytest.approx(line["ready_seconds"])
        assert line["phase_seconds"]["import"] > 0.1, "torch is imported"
        assert line["ready_seconds"] < served + 0.1, "the launcher rounds to a tenth"
        assert line["weight_gigabytes_per_second"] > 0


def test_the_log_shows_each_phase_and_a_curl_that_works(launch, integer_folder):
    launcher = launch("--model-id", integer_folder)
    url = launcher.wait_until_ready()
    eventually(lambda: "curl " in launcher.log, 5, "a curl to paste")
    # The others pass between two looks on a quick machine.
    for phase in ("router started", "shard processes started"):
        assert re.search(rf"{phase}: \d+\.\d\d s", launcher.log), launcher.log
    curl = launcher.log[launcher.log.index("curl ") :].splitlines()[0]
    printed = subprocess.run(["bash", "-c", curl], capture_output=True, text=True, timeout=60, check=True).stdout
    assert url in curl
    assert printed.startswith("data:")


def test_json_output_is_one_object_a_line(launch, integer_folder):
    launcher = launch("--model-id", integer_folder, "--json-output", "--num-shard", "2")
    launcher.wait_until_ready()
    assert launcher.stop() == 0
    objects = [json.loads(line) for line in launcher.lines]
    assert all("message" in line and "level" in line for line in objects)
    assert {line["rank"] for line in objects if "rank" in line} == {0, 1}


def test_a_running_stream_is_finished_before_the_server_stops(launch, endless_folder):
    launcher = launch("--model-id", endless_folder)
    url = launcher.wait_until_ready()
    answer = Answer()
    for event in events(url, body("long", 1500)):
        answer.take(event)
        if len(answer.ids) == 3:
            launcher.process.send_signal(signal.SIGTERM)
    assert answer.error is None
    assert answer.ids == integer_answer("long", 1500, eos=None)
    assert launcher.wait() == 0


def test_a_stream_longer_than_the_drain_limit_ends_with_an_error(launch, endless_folder):
    launcher = launch("--model-id", endless_folder, "--graceful-termination-timeout", "0")
    url = launcher.wait_until_ready()
    answer = Answer()
    try:
        for event in events(url, body("long", 4000)):
            answer.take(event)
            if len(answer.ids) == 3:
                launcher.process.send_signal(signal.SIGTERM)
    except httpx.TransportError as broken:
        answer.error = {"error": str(broken)}
    assert answer.error is not None
    assert answer.finish_reason is None, "a cut stream must not look complete"
    assert launcher.wait() in (0, 1)


@pytest.mark.parametrize("whole_group", [False, True], ids=["launcher", "terminal"])
def test_ctrl_c_drains_without_a_traceback(launch, integer_folder, whole_group):
    launcher = launch("--model-id", integer_folder)
    launcher.wait_until_ready()
    # A terminal sends SIGINT to every process of its foreground group.
    (os.killpg if whole_group else os.kill)(launcher.process.pid, signal.SIGINT)
    assert launcher.wait() == 0
    assert "Traceback" not in launcher.log
    assert "panicked" not in launcher.log


def test_copies_of_a_signal_do_not_end_a_drain(launch, endless_folder):
    """`timeout` signals its child and then its group; systemd signals every process of a service."""
    launcher = launch("--model-id", endless_folder)
    url = launcher.wait_until_ready()
    family = launcher.family()
    answer = Answer()
    for event in events(url, body("long", 1500)):
        answer.take(event)
        if len(answer.ids) == 3:
            for pid in (launcher.process.pid, *family) * 2:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
    assert answer.error is None
    assert answer.ids == integer_answer("long", 1500, eos=None)
    assert launcher.wait() == 0


def test_a_second_signal_ends_at_once(launch, endless_folder):
    launcher = launch("--model-id", endless_folder)
    url = launcher.wait_until_ready()
    family = launcher.family()
    first = threading.Event()

    def stream() -> None:
        try:
            for _ in events(url, body("long", 4000)):
                first.set()
        except httpx.TransportError:
            pass  # the server is killed under it

    client = threading.Thread(target=stream)
    client.start()
    assert first.wait(60)
    launcher.process.send_signal(signal.SIGINT)
    launcher.wait_for_line("no new requests are taken", 10)
    time.sleep(1.5)  # sooner it would count as a copy of the first
    launcher.process.send_signal(signal.SIGINT)
    assert launcher.wait(10) == 1
    assert not any(map(alive, family))
    client.join(10)
    assert not client.is_alive()


def test_a_signal_during_the_start_stops_it(launch, llama_folder):
    launcher = launch("--model-id", llama_folder)
    eventually(lambda: len(launcher.family()) == 2, 20, "shard and router were started")
    family = launcher.family()
    assert launcher.stop() in (0, 1)
    assert not any(map(alive, family))
    assert "Traceback" not in launcher.log


def test_a_signal_before_the_router_listens_for_it_is_a_clean_stop(launch, integer_folder):
    for _ in range(5):
        launcher = launch("--model-id", integer_folder)
        while len(launcher.family()) < 2:
            assert launcher.process.poll() is None, launcher.log
        assert launcher.stop() == 0, launcher.log


def test_two_instances_run_side_by_side(launch, integer_folder, llama_folder):
    one = launch("--model-id", integer_folder)
    two = launch("--model-id", llama_folder, "--num-shard", "2")
    first, second = one.wait_until_ready(), two.wait_until_ready()
    assert first != second
    assert len(one.leftovers()) == 2, "both folders are in use, and neither swept the other's"
    assert generate(first, body("a", 5)).ids == integer_answer("a", 5)
    assert len(generate(second, body("a", 5)).ids) >= 1
    assert one.stop() == 0
    assert len(generate(second, body("b", 5)).ids) >= 1
    assert two.stop() == 0


def test_version_and_help_name_every_group(tmp_path):
    from harness.launcher import LAUNCHER

    def output(flag: str) -> str:
        command = [LAUNCHER, flag]
        return subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True, check=True).stdout

    assert output("--version").startswith("launcher ")
    text = output("--help")
    for part in ("--model-id", "[env: MAX_TOTAL_TOKENS]", "Exit codes:", "Limits:", "Batching:", "Sharding:", "HTTP:"):
        assert part in text, part
