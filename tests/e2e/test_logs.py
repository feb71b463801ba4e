"""The log, as a person or a collector reads it."""

import json
import os
import pty
import re
import subprocess

import httpx
import pytest
from harness.client import body, generate
from harness.launcher import LAUNCHER, environment


def test_lines_of_shards_carry_their_rank_and_a_pipe_gets_no_colour(launch, integer_folder):
    launcher = launch("--model-id", integer_folder, "--num-shard", "2")
    launcher.wait_until_ready()
    assert launcher.stop() == 0
    for rank in (0, 1):
        assert f" rank={rank} " in launcher.log, launcher.log
    assert "\x1b" not in launcher.log


def test_a_busy_router_says_how_busy_it_is(launch, integer_folder):
    launcher = launch("--model-id", integer_folder)
    generate(launcher.wait_until_ready(), body("busy", 40))
    # A line may fall into the request's first step, before any token.
    launcher.wait_for_line(
        r"busy running=\d+ waiting=\d+ tokens_per_second=(?!0\.0 )[\d.]+ prompt_tokens_per_second=[\d.]+ "
        r"kv_used_percent=\d+$",
        60,  # five times the 10 s between two lines, and some
    )
    assert launcher.stop() == 0


SECRET, PROMPT = "sk-a-secret-key", "a-prompt-that-nobody-else-may-read"
HOSTILE = f"{PROMPT}\n\x1b[31m2026-01-01T00:00:00Z ERROR forged\r\n\x00\u2028"


def provoke(url: str) -> None:
    """Requests that carry line breaks, escapes and secrets wherever a client can put them; good ones and bad ones."""
    headers = {"authorization": f"Bearer {SECRET}", "x-request-id": "a\\x1b[31m", "user-agent": PROMPT}
    message = [{"role": "user", "content": HOSTILE}]
    with httpx.Client(base_url=url, headers=headers, timeout=60) as session:
        short = {"max_new_tokens": 3}
        session.post("/generate", json={"inputs": HOSTILE, "parameters": short}).raise_for_status()
        session.post("/generate_stream", json={"inputs": HOSTILE, "parameters": short | {"stop": [HOSTILE]}})
        session.post("/v1/chat/completions", json={"messages": message, "max_tokens": 3}).raise_for_status()
        session.post("/v1/completions", json={"prompt": HOSTILE, "max_tokens": 3, "model": HOSTILE})
        session.post("/v1/chat/completions", json={"messages": [{"role": HOSTILE, "content": HOSTILE}], "stop": 1})
        session.post("/generate", content=f'{{"inputs": "{HOSTILE}')
        session.get("/%0A%1B%5B31m" + PROMPT)
        session.request("DELETE", "/generate")
        assert session.get("/health", headers={"x-request-id": "a\x1b[31m"}).status_code == 400


@pytest.mark.parametrize("form", ["text", "json"])
def test_no_client_writes_lines_of_its_own_and_none_is_quoted(launch, integer_folder, form):
    launcher = launch("--model-id", integer_folder, *(["--json-output"] if form == "json" else []))
    provoke(launcher.wait_for_line(r"served on (http://[\d.:]+)").group(1))
    assert launcher.stop() == 0
    assert not [secret for secret in (SECRET, PROMPT, "forged") if secret in launcher.log]
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u2028]", launcher.log)
    if form == "text":
        return
    lines = [json.loads(line) for line in launcher.lines]
    assert all({"level", "message", "timestamp"} <= line.keys() for line in lines)
    [request] = [line for line in lines if line.get("route") == "/generate" and line.get("status") == 200]
    wanted = {"id", "prompt_tokens", "generated_tokens", "cached_tokens", "queue_ms", "first_token_ms", "total_ms"}
    assert wanted | {"preemptions", "finish_reason"} <= request.keys()
    assert request["prompt_tokens"] == len(HOSTILE.encode())


def test_a_terminal_gets_colour(tmp_path):
    reader, writer = pty.openpty()
    command = [LAUNCHER, "--hostname", "127.0.0.1", "--port", "0", "--model-id", str(tmp_path / "nowhere")]
    done = subprocess.run(command, env=environment(tmp_path), stdout=writer, timeout=60, check=False)
    os.close(writer)
    text = b""
    # The end of a terminal is an error.
    try:
        while part := os.read(reader, 4096):
            text += part
    except OSError:
        pass
    os.close(reader)
    assert done.returncode == 3
    assert b"there is no folder" in text
    assert b"\x1b[" in text
