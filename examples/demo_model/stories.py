"""Tells stories: draws a cast, fills a plot, and knows which questions the story answers.

It does not decide how a story is asked for; dialogues.py does.
"""

import re
from dataclasses import dataclass, field

import plots
import words
from world import Person, World


@dataclass(frozen=True)
class Answer:
    """A question with its full answer and the shortest one."""

    questions: tuple[str, ...]
    long: str
    short: str


@dataclass
class Cast:
    """What a story is about. Fields are drawn once, so a prompt and its story agree."""

    hero: Person
    helper: Person
    thing: str
    look: str
    place: str
    home: str
    food: str


@dataclass
class Story:
    """The text and the questions about it."""

    text: str
    answers: list[Answer] = field(default_factory=list)


def draw_cast(world: World) -> Cast:
    hero = world.person()
    while True:
        helper = world.person(avoid=(hero.name,))
        if helper.kind != hero.kind and helper.kind not in ("girl", "boy"):
            break
    home = world.bind(hero.name, words.HOMES)
    place = world.bind(hero.name, [place for place in words.PLACES if place != home])
    return Cast(
        hero,
        helper,
        world.thing(hero.name),
        world.look(),
        "{} the {}".format(*place),
        "{} the {}".format(*home),
        world.bind(hero.name, words.FOODS),
    )


def _slots(world: World, cast: Cast) -> dict[str, str]:
    hero, helper = cast.hero, cast.helper
    return {
        "N": hero.name,
        "h": hero.kind,
        "they": hero.they,
        "them": hero.them,
        "their": hero.their,
        "They": hero.they.capitalize(),
        "Their": hero.their.capitalize(),
        "M": helper.name,
        "k": helper.kind,
        "ak": words.a(helper.kind),
        "Ak": words.a(helper.kind).capitalize(),
        "mthey": helper.they,
        "mthem": helper.them,
        "mtheir": helper.their,
        "O": cast.thing,
        "aO": words.a(f"{cast.look} {cast.thing}"),
        "P": cast.place,
        "L": cast.home,
        "F": cast.food,
        "t": world.pick(words.TRAITS),
        "T": world.pick(plots.TIMES),
    }


def tell(world: World, cast: Cast) -> Story:
    """One story of about 60 to 130 tokens, ending included."""
    name = world.pick(list(plots.PLOTS))
    slots = _slots(world, cast)
    beats = [plots.OPENINGS, *plots.PLOTS[name]]
    lines = [world.pick(beat) for beat in beats]
    keeps_thing = name not in ("found", "gift")
    lines.append(world.pick([line for line in plots.ENDINGS if keeps_thing or "{O}" not in line]))
    text = _tidy(" ".join(lines).format(**slots))
    if world.chance(0.4):
        text += plots.THE_END
    return Story(text, _answers(cast, text))


def _tidy(text: str) -> str:
    """Mends articles in front of slots: 'a old owl' to 'an old owl'."""
    return re.sub(r"\b([Aa]) (?=[aeio]|umbrella)", r"\1n ", text)


def _answers(cast: Cast, text: str) -> list[Answer]:
    hero, helper = cast.hero, cast.helper
    answers = [
        Answer(
            (f"What kind of animal is {helper.name}?", f"What is {helper.name}?"),
            f"{helper.name} is {words.a(helper.kind)}.",
            helper.kind,
        ),
        Answer(
            (f"What is {hero.name}?", f"Who is {hero.name}?"),
            f"{hero.name} is {words.a(hero.kind)}.",
            hero.kind,
        ),
        Answer(
            (
                "Who is the story about?",
                "What is the name of the hero?",
                f"What is the name of the {hero.kind}?",
                f"What is the {hero.kind} called?",
            ),
            f"The {hero.kind} is called {hero.name}.",
            hero.name,
        ),
        Answer(
            (f"What is the name of the {helper.kind}?", f"What is the {helper.kind} called?"),
            f"The {helper.kind} is called {helper.name}.",
            helper.name,
        ),
    ]
    if cast.look in words.COLORS and words.a(f"{cast.look} {cast.thing}") in text:
        answers.append(
            Answer(
                (f"What color is the {cast.thing}?", f"What color was the {cast.thing}?"),
                f"The {cast.thing} is {cast.look}.",
                cast.look,
            )
        )
    if cast.home in text:
        answers.append(
            Answer(
                (f"Where does {hero.name} live?", f"Where did {hero.name} live?"),
                f"{hero.name} lives {cast.home}.",
                cast.home.split()[-1],
            )
        )
    return answers
