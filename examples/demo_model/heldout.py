"""The held-out exam: dialogues whose bindings never occur in training, with one right answer each.

Also the prompts for sampling. Both are functions of fixed seeds. It does not run the model.
"""

import contextlib
import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import chat
import dialogues
import formats
import generate
import stories
from dialogues import EXACT, Turn
from world import World

EXAM_SEED, PROMPT_SEED = 20_250, 20_251
# How many of each kind in the exam of 100.
SHARES = {"passage": 35, "story": 10, "sum": 15, "json": 12, "list": 12, "system": 10, "memory": 6}


@dataclass(frozen=True)
class Question:
    """Chat messages, the one right reply, and the kind of the question."""

    kind: str
    messages: list[dict[str, str]]
    expected: str


def _messages(system: str | None, turns: list[Turn]) -> list[dict[str, str]]:
    messages = [{"role": "system", "content": system}] if system else []
    for turn in turns[:-1]:
        messages += [
            {"role": "user", "content": turn.user},
            {"role": "assistant", "content": turn.reply},
        ]
    return [*messages, {"role": "user", "content": turns[-1].user}]


def _draw(world: World, kind: str) -> tuple[str | None, list[Turn]]:
    if kind == "system":
        doc = generate.styled(world)
        return doc.system, doc.turns
    makers = {
        "passage": dialogues.reading,
        "story": dialogues.story,
        "sum": dialogues.arithmetic,
        "json": formats.json_object,
        "list": formats.lists,
        "memory": chat.small_talk,
    }
    return None, makers[kind](world)


def question(world: World, kind: str) -> Question:
    """Draws until the last turn is an exact one; for stories, one about the story."""
    while True:
        try:
            system, turns = _draw(world, kind)
        except LookupError:
            # With few values to choose from, some owners have none that is held out.
            continue
        if kind == "memory":
            while turns and turns[-1].answer is None:
                turns.pop()
        if turns and turns[-1].weight == EXACT and (kind != "story" or len(turns) > 1):
            return Question(kind, _messages(system, turns), turns[-1].reply)


def exam(seed: int = EXAM_SEED, rounds: int = 1) -> list[Question]:
    """100 questions a round; the published exam is the first round of the default seed."""
    world = World(seed, heldout=True)
    return [question(world, kind) for _ in range(rounds) for kind, share in SHARES.items() for _ in range(share)]


def prompts() -> list[list[dict[str, str]]]:
    """100 chats for sampling: half ask for stories, the rest is the mix of the training text."""
    world = World(PROMPT_SEED, heldout=True)
    asked: list[list[dict[str, str]]] = []
    while len(asked) < 50:
        with contextlib.suppress(LookupError):
            request = dialogues.request(stories.draw_cast(world), world)
            asked.append([{"role": "user", "content": request}])
    mixed = (doc for doc in generate.documents(PROMPT_SEED) if doc.plain is None)
    return asked + [_messages(doc.system, doc.turns) for doc in itertools.islice(mixed, 50)]


def write_fixtures(folder: Path) -> None:
    """The two JSON files that the end-to-end test reads."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"kind": q.kind, "messages": q.messages, "expected": q.expected} for q in exam()]
    _dump(folder / "demo_heldout.json", rows)
    _dump(folder / "demo_prompts.json", [{"messages": messages} for messages in prompts()])


def _dump(path: Path, rows: list[dict]) -> None:
    lines = ",\n".join(json.dumps(row) for row in rows)
    path.write_text(f"[\n{lines}\n]\n")
