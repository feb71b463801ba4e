"""How a start can go wrong: one entry an error, with a way to provoke it. Rendered into docs/errors.md."""

import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from harness.documents import cell
from harness.hub import FakeHub
from harness.launcher import LAUNCHER, environment

FAILED, USAGE, MODEL = 1, 2, 3
# The promise of DESIGN. A machine may be busy with something else for one of the tries.
LIMIT_S, TRIES = 2.0, 3
HEAD = ["| Exit code | Message | Cause | What to do |", "|---|---|---|---|"]


@dataclass
class Place:
    """Where an error is provoked."""

    tmp: Path
    llama: Path  # a folder of a tiny Llama, a copy of its own
    hub: FakeHub
    variables: dict[str, str] = field(default_factory=dict)
    held: list[socket.socket] = field(default_factory=list)

    def model(self, **changes: object) -> list[str]:
        """The folder with other values in its config."""
        config = json.loads((self.llama / "config.json").read_text())
        (self.llama / "config.json").write_text(json.dumps(config | changes))
        return ["--model-id", str(self.llama)]

    def file(self, name: str, data: str | bytes | None) -> list[str]:
        """The folder with other content in a file, or without it."""
        path = self.llama / name
        if data is None:
            path.unlink()
        else:
            path.write_bytes(data.encode() if isinstance(data, str) else data)
        return ["--model-id", str(self.llama)]

    def by_name(self, model: str, *flags: str, **variables: str) -> list[str]:
        """A model of the hub."""
        self.variables |= {"HF_ENDPOINT": self.hub.url, "HF_HOME": str(self.tmp / "cache"), **variables}
        return ["--model-id", model, *flags]

    def taken_port(self) -> list[str]:
        holder = socket.socket()
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        self.held.append(holder)
        return ["--port", str(holder.getsockname()[1])]

    def with_variables(self, *flags: str, **variables: str) -> list[str]:
        self.variables |= variables
        return list(flags)


@dataclass(frozen=True)
class Refusal:
    """One error: its exit code, why it comes, what helps, and the flags that bring it about."""

    name: str
    code: int
    cause: str
    remedy: str
    provoke: Callable[[Place], list[str]]
    own_model: bool = True  # the flags name no model: the tiny Llama is served

    def row(self, place: Place) -> str:
        """Starts a launcher, which must end in time and with the exit code; the line of the document."""
        flags = self.provoke(place)
        if self.own_model:
            flags = ["--model-id", str(place.llama), *flags]
        seconds = []
        while not seconds or (min(seconds) > LIMIT_S and len(seconds) < TRIES):
            begin = time.monotonic()
            done = subprocess.run(
                [LAUNCHER, "--hostname", "127.0.0.1", "--port", "0", *flags],
                env=environment(place.tmp) | place.variables,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            seconds.append(time.monotonic() - begin)
        output = done.stdout + done.stderr
        assert done.returncode == self.code, output
        assert min(seconds) <= LIMIT_S, f"{seconds} s\n{output}"
        assert list(place.tmp.glob("penstock-run-*")) == []
        assert "Traceback" not in output or self.name == "a Python without the server", output
        message = self.message(output, place)
        return f"| {self.code} | {cell(message)} | {cell(self.cause)} | {cell(self.remedy)} |"

    def message(self, output: str, place: Place) -> str:
        """The first line of the error, with what differs between machines replaced."""
        found = re.search(r"(?:^|\n)(?:\S+ +ERROR |error: )(.*(?<!:)$|.*:\n.*$)", output, re.MULTILINE)
        assert found, output
        text = found.group(1)
        for path, name in ((place.llama, "/models/llama"), (place.tmp, "/tmp"), (place.hub.url, "https://hub.example")):
            text = text.replace(str(path), name)
        text = re.sub(r"\d+(\.\d+)? GiB", "N GiB", text)
        text = re.sub(r"port \d+", "port 3000", text)
        text = re.sub(r"at most \d+", "at most N", text)
        text = re.sub(r"penstock-run-\S+", "penstock-run-...", text)
        return re.sub(r"\S+/python3?(\.\d+)?\b", "python", text)


def copy(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target)
    return target
