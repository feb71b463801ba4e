"""The kinds of exchange that the demo model learns: stories, questions, sums, lists, JSON, chat.

A maker returns turns. generate.py mixes makers into whole dialogues; this module knows nothing of
tokens or of how often a kind occurs.
"""

from dataclasses import dataclass

import facts
import stories
import words
from stories import Answer, Cast
from world import World, is_heldout

# Loss weights: what the prompt decides counts in full, what the dice decide counts little.
EXACT, FREE = 1.0, 0.25


@dataclass
class Turn:
    """One exchange. `answer` is set where a system prompt may ask for another form of reply."""

    user: str
    reply: str
    weight: float = EXACT
    answer: Answer | None = None


def request(cast: Cast, world: World) -> str:
    hero, helper = cast.hero, cast.helper
    about = world.pick(
        [
            f"{words.a(hero.kind)} and {words.a(cast.thing)}",
            f"{words.a(hero.kind)} and {words.a(cast.thing)}",
            f"{words.a(hero.kind)} and {words.a(cast.thing)}",
            f"{words.a(hero.kind)} and {words.a(helper.kind)}",
            f"{words.a(hero.kind)} named {hero.name}",
            f"{words.a(hero.kind)} named {hero.name} and {words.a(cast.thing)}",
            f"{hero.name} the {hero.kind}",
            f"{hero.name} and {words.a(cast.thing)}",
            f"{hero.name} and {helper.name}",
            words.a(hero.kind),
            words.a(cast.thing),
            words.a(f"{cast.look} {cast.thing}"),
            hero.name,
        ]
    )
    return world.pick(
        [
            f"Tell me a story about {about}.",
            f"Tell me a story about {about}.",
            f"Tell a story about {about}.",
            f"Write a story about {about}.",
            f"Write a short story about {about}.",
            f"Can you tell me a story about {about}?",
            f"Please tell me a story about {about}.",
            f"I would like a story about {about}.",
            f"tell me a story about {about}",
            f"A story about {about}, please.",
        ]
    )


def story(world: World) -> list[Turn]:
    """A story on request; sometimes with questions about it."""
    cast = stories.draw_cast(world)
    told = stories.tell(world, cast)
    user = (
        request(cast, world)
        if world.chance(0.85)
        else world.pick(
            [
                "Tell me a story.",
                "Tell me a story, please.",
                "Can you tell me a bedtime story?",
                "Write a short story.",
                "Tell me a bedtime story.",
                "Tell me another story.",
            ]
        )
    )
    turns = [Turn(user, told.text, FREE)]
    if world.chance(0.8):
        turns += _ask(world, told.answers, world.pick([1, 2, 3, 4]))
    return turns


def _ask(world: World, answers: list[Answer], count: int) -> list[Turn]:
    chosen = world.sample(answers, min(count, len(answers)))
    return [Turn(_vary(world, world.pick(a.questions)), a.long, answer=a) for a in chosen]


def _vary(world: World, question: str) -> str:
    """Questions as people type them."""
    roll = world.rng.random()
    if roll < 0.06:
        return question[0].lower() + question[1:]
    if roll < 0.12:
        return question.rstrip("?")
    if roll < 0.16:
        return f"Please tell me: {question[0].lower()}{question[1:]}"
    return question


def reading(world: World, num_people: int | None = None) -> list[Turn]:
    """A passage and questions about it, the first in the same message."""
    people = num_people or world.pick([1, 1, 2, 2, 2, 3, 3, 4])
    text, answers = facts.passage(world, people, world.pick([1, 1, 2, 2, 3]))
    if not answers:
        return reading(world, num_people)
    turns = _ask(world, answers, world.pick([1, 2, 3, 4, 6, 8]))
    return _place_passage(world, text, turns)


def story_reading(world: World) -> list[Turn]:
    """A whole story by the user, and questions about it."""
    told = stories.tell(world, stories.draw_cast(world))
    return _place_passage(world, told.text, _ask(world, told.answers, world.pick([2, 3, 4])))


def question(world: World) -> Turn:
    """One question behind its passage."""
    text, answers = "", []
    while not answers:
        text, answers = facts.passage(world, world.pick([1, 2]), world.pick([1, 2]))
    turn = _ask(world, answers, 1)[0]
    return Turn(f"{text} {turn.user}", turn.reply, answer=turn.answer)


def _place_passage(world: World, text: str, turns: list[Turn]) -> list[Turn]:
    first = turns[0]
    shape = world.pick(
        [
            "{t} {q}",
            "{t} {q}",
            "{t}\n{q}",
            "Read this: {t}\n{q}",
            "Text: {t}\nQuestion: {q}",
            "Here is a story. {t} {q}",
            "{q} {t}",
            "remember",
        ]
    )
    if shape == "remember":
        user = world.pick([f"Remember this: {text}", f"Please remember this. {text}", f"Listen: {text}"])
        return [
            Turn(user, world.pick(["Okay, I will remember that.", "I will remember it."])),
            *turns,
        ]
    return [Turn(shape.format(t=text, q=first.user), first.reply, answer=first.answer), *turns[1:]]


def arithmetic(world: World) -> list[Turn]:
    """One to three bare sums or word problems with numbers up to 20."""
    makers = (_bare_sum, _word_problem, _compare, _count)
    return [world.pick([*makers, _word_problem, _bare_sum])(world) for _ in range(world.pick([1, 2, 3, 4]))]


def _operands(world: World) -> tuple[str, int, int, int]:
    """A sum, split by its numbers: the mirrored sum of a held-out one is in training."""
    while True:
        x, y = world.pick(range(11)), world.pick(range(11))
        plus = world.chance(0.55)
        a, b, result = (x, y, x + y) if plus else (x + y, y, x)
        heldout = x < y and is_heldout("sum", x, y)
        if heldout == world.heldout:
            return ("plus" if plus else "minus"), a, b, result


def _bare_sum(world: World) -> Turn:
    verb, a, b, result = _operands(world)
    sign = "+" if verb == "plus" else "-"
    user = world.pick(
        [
            f"What is {a} {verb} {b}?",
            f"How much is {a} {verb} {b}?",
            f"What is {a} {sign} {b}?",
            f"{a} {sign} {b} = ?",
            f"{a} {sign} {b}",
            f"Calculate {a} {sign} {b}.",
        ]
    )
    long = f"{a} {verb} {b} is {result}."
    return Turn(user, long, answer=Answer((user,), long, str(result)))


def _word_problem(world: World) -> Turn:
    verb, a, b, result = _operands(world)
    who = world.person()
    thing = world.thing(who.name)
    things = words.plural(thing)
    more = world.pick([f"finds {b} more", f"gets {b} more", f"buys {b} more"])
    less = world.pick([f"gives away {b} of them", f"loses {b} of them", f"sells {b} of them"])
    user = (
        f"{who.name} has {a} {words.counted(thing, a)} and {more if verb == 'plus' else less}. "
        f"How many {things} does {who.name} have now?"
    )
    left = f"{result} {words.counted(thing, result)}"
    long = f"{a} {verb} {b} is {result}, so {who.name} has {left} now."
    return Turn(user, long, answer=Answer((user,), long, str(result)))


def _compare(world: World) -> Turn:
    a, b = world.pick(range(1, 101)), world.pick(range(1, 101))
    if a == b or not world.allows("compare", a, b):
        return _compare(world)
    small, big = sorted((a, b))
    if world.chance(0.6):
        user, long = f"Which is bigger, {a} or {b}?", f"{big} is bigger than {small}."
        return Turn(user, long, answer=Answer((user,), long, str(big)))
    user, long = f"Which is smaller, {a} or {b}?", f"{small} is smaller than {big}."
    return Turn(user, long, answer=Answer((user,), long, str(small)))


def _count(world: World) -> Turn:
    first = world.pick(range(91))
    last = first + world.pick(range(2, 10))
    if not world.allows("count", first, last):
        return _count(world)
    return Turn(f"Count from {first} to {last}.", ", ".join(map(str, range(first, last + 1))) + ".")
