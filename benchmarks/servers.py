"""Starts the two servers that are compared, each on a free port, and stops them. Knows nothing of loads or figures."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PEER_ENV = ROOT / ".venv-bench"
# Blocks of the peer's KV cache, 256 tokens each: 32 streams of two blocks. Its default takes 14 GB.
PEER_KV_BLOCKS = 64
# Its default of 8192 makes an attention mask of more than a gigabyte; ours takes 512 prompt tokens a step, too.
PEER_BATCH_TOKENS = 512


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def log_of(port: int) -> Path:
    """The log of the server that was started with this port, while it runs."""
    return Path(f"/tmp/penstock-bench-{port}.log")


@contextlib.contextmanager
def penstock(model: Path, *flags: str) -> Iterator[int]:
    """The launcher of this checkout's environment, or the one that PENSTOCK_LAUNCHER names. Yields the port."""
    port = free_port()
    launcher = os.environ.get("PENSTOCK_LAUNCHER", str(Path(sys.executable).parent / "launcher"))
    command = [launcher, "--model-id", str(model), "--port", str(port)]
    with running([*command, "--hostname", "127.0.0.1", *flags], port):
        yield port


@contextlib.contextmanager
def transformers_serve(model: Path) -> Iterator[int]:
    """`transformers serve --continuous-batching` in fp32, in an environment of its own. Yields the port."""
    port = free_port()
    command = [str(_peer_python().parent / "transformers"), "serve", str(model), "--continuous-batching"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    command += ["--cb-num-blocks", str(PEER_KV_BLOCKS), "--cb-max-batch-tokens", str(PEER_BATCH_TOKENS)]
    threads = str(len(os.sched_getaffinity(0)))
    with running(command, port, environment={"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": threads}):
        yield port


def _peer_python() -> Path:
    """Python of the peer's environment, which is made on first use; uv is used where it is installed."""
    python = PEER_ENV / "bin" / "python"
    if not (PEER_ENV / "bin" / "transformers").exists():
        wanted = ["-q", "-c", str(ROOT / "constraints.txt"), "torch", "transformers[serving]", "accelerate"]
        if uv := shutil.which("uv"):
            subprocess.run([uv, "venv", "-q", "-p", sys.executable, PEER_ENV], check=True)
            subprocess.run([uv, "pip", "install", "-p", python, *wanted], check=True)
        else:
            subprocess.run([sys.executable, "-m", "venv", PEER_ENV], check=True)
            subprocess.run([python, "-m", "pip", "install", *wanted], check=True)
    return python


@contextlib.contextmanager
def running(
    command: list[str], port: int, environment: dict[str, str] | None = None, cores: set[int] | None = None
) -> Iterator[int]:
    """Starts a server, on these cores if they are given, waits until it is healthy and stops it. Yields its pid."""
    log_path = log_of(port)
    with log_path.open("w") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            env=os.environ | (environment or {}),
            start_new_session=True,
            preexec_fn=(lambda: os.sched_setaffinity(0, cores)) if cores else None,
        )
    try:
        _wait_until_healthy(process, port, log_path)
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        log_path.unlink()


def _wait_until_healthy(process: subprocess.Popen[bytes], port: int, log_path: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"server ended with {process.returncode}:\n{log_path.read_text()[-2000:]}")
        url = f"http://127.0.0.1:{port}/health"
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2) as answer:
            if answer.status == 200:
                return
        time.sleep(0.1)
    raise RuntimeError(f"not healthy after 120 s:\n{log_path.read_text()[-2000:]}")
