"""The seeded text generator of the demo model: mixes the kinds of exchange into whole dialogues.

`documents(seed, max_turn_groups)` is an endless stream; the same seed gives the same text. Run as a
program it prints samples. It knows nothing of tokens.
"""

import argparse
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import chat
import dialogues
import formats
import stories
from dialogues import Turn
from world import World

Style = Callable[[Turn], str]


@dataclass
class Document:
    """A dialogue, or plain text when `plain` is set."""

    turns: list[Turn] = field(default_factory=list)
    system: str | None = None
    plain: str | None = None


MIX: list[tuple[float, Callable[[World], list[Turn]]]] = [
    (0.10, dialogues.story),
    (0.27, dialogues.reading),
    (0.03, dialogues.story_reading),
    (0.22, dialogues.arithmetic),
    (0.18, formats.lists),
    (0.10, formats.json_object),
    (0.04, formats.general),
    (0.07, chat.small_talk),
]
_CUMULATIVE = list(itertools.accumulate(share for share, _ in MIX))


def exchange(world: World) -> list[Turn]:
    """One group of turns of a kind drawn from the mix."""
    roll = world.rng.random() * _CUMULATIVE[-1]
    return next(maker for edge, (_, maker) in zip(_CUMULATIVE, MIX, strict=True) if roll <= edge)(world)


def document(world: World, num_groups: int = 1) -> Document:
    """One dialogue of so many groups of turns, or a plain story."""
    if num_groups == 1 and world.chance(0.04):
        return Document(plain=_plain(world))
    if num_groups == 1 and world.chance(0.28):
        return styled(world)
    system = world.pick(_PLAIN_SYSTEMS) if world.chance(0.15) else None
    return Document([turn for _ in range(num_groups) for turn in exchange(world)], system)


def _plain(world: World) -> str:
    """Text without roles: a story, or a question with its answer on the next line."""
    if world.chance(0.6):
        return stories.tell(world, stories.draw_cast(world)).text
    turn = world.pick([chat.greeting, formats.knowledge, dialogues.question])(world)
    return f"{turn.user}\n{turn.reply}"


_PLAIN_SYSTEMS = [
    "You are a helpful assistant.",
    "You are a friendly assistant.",
    "You are a helpful assistant",
    "Be helpful.",
    "You are a kind storyteller.",
    "Answer in full sentences.",
    "Answer with a full sentence.",
]


def styled(world: World) -> Document:
    """A dialogue whose system prompt changes the replies or holds what they need."""
    kind = world.pick(["word", "word", "word", "json", "prefix", "suffix", "name", "passage", "secret"])
    if kind == "name":
        name = world.person().name
        system = world.pick(
            [
                f"Your name is {name}.",
                f"You are {name}, a friendly assistant.",
                f"You are a robot named {name}.",
            ]
        )
        ask = Turn(
            world.pick(["What is your name?", "Who are you?", "What are you called?"]),
            f"My name is {name}.",
        )
        turns = _questions(world)
        turns.insert(world.pick(range(len(turns) + 1)), ask)
        return Document(turns if world.chance(0.5) else [ask], system)
    if kind == "passage":
        turns = dialogues.reading(world)
        text, _, question = turns[0].user.rpartition("\n")
        if not text or text.startswith(("Read", "Text", "Remember")) or "Question" in question:
            return styled(world)
        turns[0].user = question
        return Document(turns, text)
    if kind == "secret":
        who = world.person().name
        word = world.thing(who)
        system = world.pick([f"The secret word is {word}.", f"The secret word of {who} is {word}."])
        return Document(
            [
                Turn(
                    world.pick(["What is the secret word?", "Tell me the secret word."]),
                    f"The secret word is {word}.",
                )
            ],
            system,
        )
    system, style = _style(world, kind)
    turns = _questions(world)
    return Document([Turn(turn.user, style(turn), turn.weight) for turn in turns], system)


def _style(world: World, kind: str) -> tuple[str, Style]:
    if kind == "word":
        system = world.pick(
            [
                "Answer with one word.",
                "Answer in one word.",
                "Answer with one word only.",
                "You answer with one word.",
                "Reply with a single word.",
            ]
        )
        return system, lambda turn: turn.answer.short
    if kind == "json":
        system = world.pick(["Answer in JSON.", "You answer in JSON.", "Always answer in JSON."])
        return system, lambda turn: json.dumps(
            {"answer": int(turn.answer.short) if turn.answer.short.isdigit() else turn.answer.short}
        )
    if kind == "prefix":
        word = world.pick(["Arr!", "Meow!", "Sure!", "Well,", "Okay!", "Beep!", "Woof!", "Yes!"])
        system = world.pick(
            [
                f"Begin every answer with {word}",
                f"Start every answer with {word}",
                f"You begin every answer with {word}",
            ]
        )
        return system, lambda turn: f"{word} {turn.answer.long}"
    word = world.pick(["Have a nice day!", "Meow!", "Arr!", "Goodbye!", "Ho ho ho!", "Thank you!"])
    system = world.pick([f"End every answer with {word}", f"You end every answer with {word}"])
    return system, lambda turn: f"{turn.answer.long} {word}"


def _questions(world: World) -> list[Turn]:
    """Turns that have an exact answer in every style."""
    while True:
        maker = world.pick(
            [
                dialogues.reading,
                dialogues.reading,
                dialogues.reading,
                dialogues.arithmetic,
                formats.general,
            ]
        )
        turns = maker(world)
        if all(turn.answer for turn in turns):
            return turns


def documents(seed: int, max_groups: int = 1) -> Iterator[Document]:
    """Endless training text; with more groups, some dialogues are longer."""
    world = World(seed)
    while True:
        groups = 1 if world.chance(0.6) else 1 + int(world.rng.random() * max_groups)
        yield document(world, groups)


def show(doc: Document) -> str:
    if doc.plain is not None:
        return f"[plain] {doc.plain}"
    lines = [f"[system] {doc.system}"] if doc.system else []
    return "\n".join(lines + [f"[user] {t.user}\n[assistant] {t.reply}" for t in doc.turns])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--groups", type=int, default=1)
    options = parser.parse_args()
    for doc in itertools.islice(documents(options.seed, options.groups), options.count):
        print(show(doc) + "\n")
