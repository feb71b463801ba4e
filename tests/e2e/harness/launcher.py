"""Starts the real launcher and stops it by process id. Knows its flags and log lines, nothing of what is served."""

import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

ROOT = Path(__file__).parents[3]
LAUNCHER = Path(os.environ.get("PENSTOCK_LAUNCHER", ROOT / ".venv" / "bin" / "launcher"))
# Hang guards, several times what a start or stop takes on two busy cores.
START_LIMIT_S = 120
STOP_LIMIT_S = 30


def environment(folder: Path) -> dict[str, str]:
    """The caller's, less what would configure a launcher, with a TMPDIR of its own so that leftovers are seen."""
    configuring = {"HOSTNAME", "PORT", "MODEL_ID", "NUM_SHARD", "DTYPE", "LOAD_FORMAT", "LOG_LEVEL", "JSON_OUTPUT"}
    configuring |= {"REVISION", "QUANTIZE", "SHARDED", "SPECULATE", "API_KEY", "HF_MODEL_ID"}
    configuring |= {"HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE", "HUGGINGFACE_HUB_CACHE"}
    kept = {name: value for name, value in os.environ.items() if name not in configuring}
    packages = f"{ROOT / 'server'}{os.pathsep}{ROOT / 'kernels'}"
    return kept | {"TMPDIR": str(folder), "PENSTOCK_PYTHON": sys.executable, "PYTHONPATH": packages}


def eventually(check: Callable[[], bool], limit_s: float, what: str) -> None:
    """Waits for a condition. Raises AssertionError that says what did not happen."""
    deadline = time.monotonic() + limit_s
    while not check():
        assert time.monotonic() < deadline, f"not within {limit_s} s: {what}"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and is not yet reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def children(pid: int) -> list[int]:
    """Direct children of a process."""
    return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


class Launcher:
    """One run of the launcher, its lines collected. A context manager that leaves nobody behind."""

    def __init__(self, tmp: Path, *flags: str, variables: dict[str, str] | None = None) -> None:
        self.tmp = tmp
        self.lines: list[str] = []
        # Every child that was ever asked for: those of a launcher that is gone cannot be found any more.
        self._seen: set[int] = set()
        self._new: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self.process = subprocess.Popen(
            [str(LAUNCHER), "--hostname", "127.0.0.1", "--port", "0", *flags],
            env=environment(tmp) | (variables or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        threading.Thread(target=self._read, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.family()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        try:
            eventually(lambda: not any(map(alive, self._seen)), STOP_LIMIT_S, "the children ended with their launcher")
        finally:
            for pid in filter(alive, self._seen):
                os.kill(pid, signal.SIGKILL)
            assert self.process.stdout is not None
            self.process.stdout.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        try:
            for line in self.process.stdout:
                self.lines.append(line.rstrip("\n"))
                self._new.put(line.rstrip("\n"))
        except ValueError:
            pass  # closed by __exit__
        self._new.put(None)

    @property
    def log(self) -> str:
        return "\n".join(self.lines)

    def wait_for_line(self, pattern: str, limit_s: float = START_LIMIT_S) -> re.Match[str]:
        """The first not yet seen line that matches. Raises AssertionError with the log when it does not come."""
        deadline = time.monotonic() + limit_s
        while True:
            try:
                line = self._new.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no line {pattern!r} within {limit_s} s in:\n{self.log}") from None
            assert line is not None, f"ended without a line {pattern!r}:\n{self.log}"
            if match := re.search(pattern, line):
                return match

    def wait_until_ready(self) -> str:
        """The base URL."""
        return self.wait_for_line(r"Connected.* (http://[^ ]+)").group(1)

    def wait(self, limit_s: float = STOP_LIMIT_S) -> int:
        """The exit code."""
        try:
            return self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {limit_s} s:\n{self.log}") from None

    def stop(self, signum: signal.Signals = signal.SIGTERM) -> int:
        """Asks to stop; the exit code."""
        self.process.send_signal(signum)
        return self.wait()

    def family(self) -> list[int]:
        """The launcher's children: shards and router."""
        found = children(self.process.pid) if self.process.poll() is None else []
        self._seen |= set(found)
        return found

    def shards(self) -> list[int]:
        return [pid for pid in self.family() if "penstock_server" in command_line(pid)]

    def router(self) -> int:
        [pid] = [pid for pid in self.family() if "--config-stdin" in command_line(pid)]
        return pid

    def leftovers(self) -> list[str]:
        """Names in TMPDIR that the launcher made."""
        return sorted(path.name for path in self.tmp.glob("penstock-run-*"))


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except (FileNotFoundError, ProcessLookupError):
        return ""
