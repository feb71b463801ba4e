"""The processes of the router's benchmark, each on a core of its own where there are three: the router, the fake shard
that speaks the real Step protocol, the bare loop and the client. Knows nothing of cases or figures."""

import contextlib
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import models
import servers

# Of the demo tokenizer.
VOCABULARY = 3072


@dataclass(frozen=True, slots=True)
class Placement:
    """Which cores the server that is measured, the shard and the client run on."""

    server: set[int]
    shard: set[int]
    client: set[int]
    words: str


def placement() -> Placement:
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) >= 3:
        return Placement({cores[0]}, {cores[1]}, {cores[2]}, "a core each")
    if len(cores) == 2:
        return Placement({cores[0]}, {cores[1]}, {cores[1]}, "shard and client share a core")
    return Placement(set(cores), set(cores), set(cores), "all on one core")


PLACEMENT = placement()


@dataclass(frozen=True, slots=True)
class Server:
    """What a client needs to know."""

    address: str
    pid: int
    shard_pid: int | None = None


def build() -> None:
    cargo = ["cargo", "build", "--release", "--quiet"]
    subprocess.run([*cargo, "--package", "penstock-router", "--examples"], check=True, cwd=servers.ROOT)
    subprocess.run([*cargo, "--package", "penstock", "--bin", "router"], check=True, cwd=servers.ROOT)


def _program(name: str) -> str:
    folder = Path(os.environ.get("CARGO_TARGET_DIR", "target"))
    return str(servers.ROOT / folder / "release" / name)


@contextlib.contextmanager
def router(shard_flags: list[str], router_flags: list[str]) -> Iterator[Server]:
    """The real router in front of a fake shard."""
    with tempfile.TemporaryDirectory() as folder:
        socket = str(Path(folder) / "shard.sock")
        shard = [_program("examples/fake_shard"), "--socket", socket, "--vocab-size", str(VOCABULARY)]
        port = servers.free_port()
        command = [_program("router"), "--shard-socket", socket, "--model-path", str(models.long_demo())]
        command += ["--hostname", "127.0.0.1", "--port", str(port), *router_flags]
        with (
            _child([*shard, *shard_flags], PLACEMENT.shard) as shard_process,
            servers.running(command, port, cores=PLACEMENT.server) as pid,
        ):
            yield Server(f"127.0.0.1:{port}", pid, shard_process.pid)


@contextlib.contextmanager
def bare_loop(event_bytes: int, tokens: int, *flags: str) -> Iterator[Server]:
    """The peer."""
    command = [_program("examples/bench_bare"), "--event-bytes", str(event_bytes), "--tokens", str(tokens)]
    with _child([*command, *flags], PLACEMENT.server) as process:
        assert process.stdout
        yield Server(process.stdout.readline().strip(), process.pid)


def client(server: Server, load: list[str], *flags: str) -> dict[str, Any]:
    """Runs a client to its end."""
    command = [_program("examples/bench_client"), "--address", server.address, "--pid", str(server.pid)]
    if server.shard_pid:
        command += ["--shard-pid", str(server.shard_pid)]
    with _child([*command, *flags, *load], PLACEMENT.client) as process:
        output, _ = process.communicate()
        if process.returncode:
            raise RuntimeError(f"the client ended with {process.returncode}")
    report: dict[str, Any] = json.loads(output)
    return report


@contextlib.contextmanager
def _child(command: list[str], cores: set[int]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command,
        # The fake shard ends when this does.
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
