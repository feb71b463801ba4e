"""The Dockerfile as a list of instructions, so that tests can follow its steps without a daemon."""

import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Instruction:
    """One instruction; the number of its stage counts from 0."""

    stage: int
    name: str
    text: str


def instructions() -> list[Instruction]:
    """Those of the Dockerfile, in order, without comments."""
    lines = (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    found: list[Instruction] = []
    stage = -1
    for line in lines:
        if not line.strip() or line.startswith("#"):
            continue
        name, text = line.split(maxsplit=1)
        stage += name == "FROM"
        found.append(Instruction(stage, name, text))
    return found


def variables() -> dict[str, str]:
    """What the last stage sets in the environment."""
    last = instructions()[-1].stage
    pairs = [shlex.split(step.text) for step in instructions() if (step.stage, step.name) == (last, "ENV")]
    return dict(pair.split("=", 1) for line in pairs for pair in line)


def command(containing: str) -> str:
    """The only RUN that contains these words."""
    [found] = [step.text for step in instructions() if step.name == "RUN" and containing in step.text]
    return found
