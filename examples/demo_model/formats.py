"""Exchanges whose point is the form of the reply: lists, JSON, general knowledge."""

import json

import words
from dialogues import FREE, Turn
from stories import Answer
from world import World

GROUPS = {
    "animals": words.ANIMALS,
    "colors": words.COLORS,
    "things": words.THINGS,
    "foods": words.FOODS,
    "names": words.NAMES,
    "places": [noun for _, noun in words.PLACES],
    "jobs": words.JOBS,
    "toys": ["kite", "ball", "drum", "doll", "puppet", "puzzle", "marble", "balloon"],
}


def _distinct(world: World, items: list[str], count: int) -> list[str]:
    """Some items whose first pair this stream may use."""
    while True:
        chosen = world.sample(items, count)
        if world.allows(*chosen[:2]):
            return chosen


def lists(world: World) -> list[Turn]:
    """A list on request: from the prompt's own items, or made up."""
    return [_free_list(world) if world.chance(0.3) else _given_list(world)]


def _free_list(world: World) -> Turn:
    group = world.pick(list(GROUPS))
    count = world.pick([3, 3, 4, 5, 6])
    number = world.pick([words.NUMBER_WORDS[count], str(count)])
    items = world.sample(GROUPS[group], count)
    user = world.pick(
        [
            f"List {number} {group}.",
            f"Name {number} {group}.",
            f"Give me a list of {number} {group}.",
            f"Write a list of {number} {group}.",
            f"Can you list {number} {group}?",
        ]
    )
    return Turn(user, "\n".join(f"{i}. {item}" for i, item in enumerate(items, 1)), FREE)


def _given_list(world: World) -> Turn:
    items = _distinct(
        world,
        world.pick([words.THINGS, words.THINGS, words.ANIMALS, words.FOODS, words.NAMES]),
        world.pick([2, 3, 3, 4, 5]),
    )
    text = words.join_and(items)
    style = world.pick(["-", "1", ","])
    if style == "-":
        user = world.pick([f"Make a list of {text}.", f"Write {text} as a list.", f"Put {text} in a list."])
        return Turn(user, "\n".join(f"- {item}" for item in items))
    if style == "1":
        user = world.pick([f"Make a numbered list of {text}.", f"Write {text} as a numbered list."])
        return Turn(user, "\n".join(f"{i}. {item}" for i, item in enumerate(items, 1)))
    user = world.pick(
        [
            f"What comes first: {text}?",
            f"Repeat the first word: {text}.",
            f"Repeat the last word: {text}.",
            f"Write {text} as a JSON list.",
        ]
    )
    if "JSON" in user:
        return Turn(user, json.dumps(items))
    return Turn(user, items[-1 if "last" in user else 0])


def json_object(world: World) -> list[Turn]:
    """A JSON object from named fields or from sentences; fields keep the order of the prompt."""
    who = world.person()
    fields: dict[str, str | int] = {
        "name": who.name,
        "animal": who.kind,
        "age": world.number(who.name, 2, 99),
        "color": world.bind(who.name, words.COLORS),
        "thing": world.thing(who.name),
        "food": world.bind(who.name, words.FOODS),
        "place": world.bind(who.name, words.HOMES)[1],
        "job": world.bind(who.name, words.JOBS),
    }
    if who.kind in ("girl", "boy"):
        del fields["animal"]
    chosen = world.sample(list(fields)[1:], world.pick([1, 2, 2, 3]))
    if world.chance(0.35):
        return [Turn(*_from_sentences(world, fields, chosen))]
    keys = ["name", *chosen]
    text = words.join_and([f"{key} {fields[key]}" for key in keys])
    user = world.pick(
        [
            f"Write a JSON object with {text}.",
            f"Make a JSON object with {text}.",
            f"Give me JSON with {text}.",
            f"Write JSON: {text}.",
        ]
    )
    return [Turn(user, json.dumps({key: fields[key] for key in keys}))]


def _from_sentences(world: World, fields: dict, chosen: list[str]) -> tuple[str, str]:
    name = fields["name"]
    shapes = {
        "animal": "{n} is {a}.",
        "age": "{n} is {v} years old.",
        "color": "{n} likes the color {v}.",
        "thing": "{n} has {a}.",
        "food": "{n} eats {v}.",
        "place": "{n} is at the {v}.",
        "job": "{n} is {a}.",
    }
    text = " ".join(shapes[key].format(n=name, v=fields[key], a=words.a(str(fields[key]))) for key in chosen)
    user = world.pick(
        [
            f"Turn this into JSON: {text}",
            f"Write this as JSON: {text}",
            f"{text} Write this as JSON.",
        ]
    )
    return user, json.dumps({key: fields[key] for key in ["name", *chosen]})


def general(world: World) -> list[Turn]:
    """General knowledge of a very small kind; nothing here is held out."""
    return [knowledge(world) for _ in range(world.pick([1, 2, 3]))]


def knowledge(world: World) -> Turn:
    kind = world.pick(["opposite", "sound", "baby", "color", "day", "month", "plural", "next", "capital"])
    if kind == "opposite":
        x, y = world.pick(words.OPPOSITES).split("/")[:: world.pick([1, -1])]
        return known(f"What is the opposite of {x}?", f"The opposite of {x} is {y}.", y)
    if kind == "capital":
        x, y = world.pick(words.CAPITALS).split("/")
        return known(f"What is the capital of {x}?", f"The capital of {x} is {y}.", y)
    if kind == "sound":
        x, y = world.pick(words.SOUNDS).split("/")
        return known(f"What sound does {words.a(x)} make?", f"{words.a(x).capitalize()} says {y}.", y)
    if kind == "baby":
        x, y = world.pick(words.BABIES).split("/")
        return known(f"What is a baby {x} called?", f"A baby {x} is called {words.a(y)}.", y)
    if kind == "color":
        x, y = world.pick(words.TYPICAL).split("/")
        noun = f"the {x}" if x in ("sky", "sun") else words.a(x)
        if x in ("grass", "snow", "coal", "chocolate"):
            noun = x
        return known(f"What color is {noun}?", f"{noun[0].upper()}{noun[1:]} is {y}.", y)
    if kind in ("day", "month"):
        names = words.DAYS if kind == "day" else words.MONTHS
        i = world.pick(range(len(names)))
        x, y = names[i], names[(i + 1) % len(names)]
        return known(f"What {kind} comes after {x}?", f"{y} comes after {x}.", y)
    if kind == "plural":
        x = world.pick(words.THINGS + words.ANIMALS)
        return known(
            f"What is the plural of {x}?",
            f"The plural of {x} is {words.plural(x)}.",
            words.plural(x),
        )
    x = world.pick(range(100))
    return known(f"What number comes after {x}?", f"{x + 1} comes after {x}.", str(x + 1))


def known(question: str, long: str, short: str) -> Turn:
    return Turn(question, long, answer=Answer((question,), long, short))
