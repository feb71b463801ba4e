"""The log, as a person or a collector reads it."""

import os
import pty
import subprocess

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
