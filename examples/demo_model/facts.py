"""Small facts about characters, each with the questions that it answers.

A passage is a few facts, in any order, about one to four characters. It does not know who asks.
"""

from collections.abc import Callable

import words
from stories import Answer
from world import Person, World


class Fact:
    """One sentence and its questions. `owner` keeps questions about one character apart."""

    def __init__(self, owner: Person, sentence: str, *answers: Answer) -> None:
        self.owner, self.sentence, self.answers = owner, sentence, answers


def _kind(world: World, who: Person) -> Fact:
    name, kind = who.name, words.a(who.kind)
    questions = (f"What is {name}?", f"Who is {name}?")
    if who.kind not in ("girl", "boy"):
        questions += (f"What kind of animal is {name}?",)
    detailed = words.a(f"{world.pick(words.TRAITS)} {who.kind}")
    return Fact(
        who,
        f"{name} is {world.pick([kind, detailed])}.",
        Answer(questions, f"{name} is {kind}.", who.kind),
    )


def _lives(world: World, who: Person) -> Fact:
    home = "{} the {}".format(*world.bind(who.name, words.HOMES))
    return Fact(
        who,
        f"{who.name} lives {home}.",
        Answer(
            (f"Where does {who.name} live?", f"Where is the home of {who.name}?"),
            f"{who.name} lives {home}.",
            home.split()[-1],
        ),
    )


def _event(world: World, who: Person) -> Fact:
    """Found, lost or saw a thing somewhere: the richest fact."""
    name, thing, look, place = who.name, world.thing(who.name), world.look(), world.place(who.name)
    past, base = world.pick(
        [
            ("found", "find"),
            ("lost", "lose"),
            ("saw", "see"),
            ("hid", "hide"),
            ("left", "leave"),
            ("bought", "buy"),
        ]
    )
    phrase = words.a(f"{look} {thing}")
    answers = [
        Answer((f"What did {name} {base}?",), f"{name} {past} {phrase}.", thing),
        Answer(
            (f"Where did {name} {base} the {thing}?", f"Where did {name} {base} it?"),
            f"{name} {past} the {thing} {place}.",
            place.split()[-1],
        ),
        Answer(
            (f"Who {past} the {thing}?", f"Who {past} {words.a(thing)}?"),
            f"{name} {past} the {thing}.",
            name,
        ),
    ]
    if look in words.COLORS:
        answers.append(
            Answer(
                (
                    f"What color is the {thing}?",
                    f"What color was the {thing}?",
                    f"What colour is the {thing}?",
                ),
                f"The {thing} is {look}.",
                look,
            )
        )
    when = world.pick(["", "", "", "Yesterday, ", "Today, ", "On " + world.pick(words.DAYS) + ", "])
    title = f"{name} the {who.kind}" if world.chance(0.3) else name
    return Fact(who, f"{when}{title} {past} {phrase} {place}.", *answers)


def _eats(world: World, who: Person) -> Fact:
    food = world.bind(who.name, words.FOODS)
    verb = world.pick(["like", "like", "love"])
    return Fact(
        who,
        f"{who.name} {verb}s to eat {food}.",
        Answer(
            (f"What does {who.name} {verb} to eat?", f"What does {who.name} eat?"),
            f"{who.name} {verb}s to eat {food}.",
            food,
        ),
        Answer(
            (f"Who {verb}s to eat {food}?", f"Who eats {food}?"),
            f"{who.name} {verb}s to eat {food}.",
            who.name,
        ),
    )


def _owns(world: World, who: Person) -> Fact:
    thing, count = words.plural(world.thing(who.name)), world.number(who.name, 2, 99)
    return Fact(
        who,
        f"{who.name} has {count} {thing}.",
        Answer(
            (f"How many {thing} does {who.name} have?",),
            f"{who.name} has {count} {thing}.",
            str(count),
        ),
        Answer(
            (f"Who has {thing}?", f"Who has {count} {thing}?"),
            f"{who.name} has {count} {thing}.",
            who.name,
        ),
    )


def _age(world: World, who: Person) -> Fact:
    age = world.number(who.name, 2, 99)
    return Fact(
        who,
        f"{who.name} is {age} years old.",
        Answer(
            (f"How old is {who.name}?", f"What is the age of {who.name}?"),
            f"{who.name} is {age} years old.",
            str(age),
        ),
    )


def _color(world: World, who: Person) -> Fact:
    color = world.bind(who.name, words.COLORS)
    return Fact(
        who,
        f"The favorite color of {who.name} is {color}.",
        Answer(
            (f"What is the favorite color of {who.name}?", f"What color does {who.name} like?"),
            f"The favorite color of {who.name} is {color}.",
            color,
        ),
    )


def _job(world: World, who: Person) -> Fact:
    job = world.bind(who.name, words.JOBS)
    return Fact(
        who,
        f"{who.name} works as {words.a(job)}.",
        Answer(
            (f"What is the job of {who.name}?", f"What does {who.name} work as?"),
            f"{who.name} works as {words.a(job)}.",
            job,
        ),
    )


def _feels(world: World, who: Person) -> Fact:
    feeling = world.bind(who.name, words.FEELINGS)
    return Fact(
        who,
        f"{who.name} is very {feeling} today.",
        Answer(
            (f"How does {who.name} feel?", f"How is {who.name} today?"),
            f"{who.name} is very {feeling} today.",
            feeling,
        ),
    )


def _friend(world: World, who: Person) -> Fact:
    other = world.person(avoid=(who.name,)).name
    if world.chance(0.4):
        return Fact(
            who,
            f"The best friend of {who.name} is {other}.",
            Answer(
                (f"Who is the best friend of {who.name}?",),
                f"The best friend of {who.name} is {other}.",
                other,
            ),
        )
    thing = world.thing(who.name)
    return Fact(
        who,
        f"{who.name} gave {words.a(thing)} to {other}.",
        Answer(
            (f"What did {who.name} give to {other}?",),
            f"{who.name} gave {words.a(thing)} to {other}.",
            thing,
        ),
        Answer(
            (f"Who gave {words.a(thing)} to {other}?",),
            f"{who.name} gave {words.a(thing)} to {other}.",
            who.name,
        ),
        Answer(
            (f"Who got {words.a(thing)}?", f"Who has the {thing} now?"),
            f"{other} got {words.a(thing)}.",
            other,
        ),
    )


Maker = Callable[[World, Person], Fact]
MAKERS: list[Maker] = [
    _kind,
    _lives,
    _event,
    _event,
    _event,
    _eats,
    _owns,
    _age,
    _color,
    _job,
    _feels,
    _friend,
]


def passage(world: World, num_people: int, facts_each: int) -> tuple[str, list[Answer]]:
    """A shuffled passage, and the questions that have exactly one right answer in it."""
    facts: list[Fact] = []
    taken: list[str] = []
    for _ in range(num_people):
        who = world.person(avoid=taken)
        taken.append(who.name)
        makers = [world.pick(MAKERS) for _ in range(facts_each)]
        facts += [maker(world, who) for maker in dict.fromkeys(makers)]
    if num_people > 1:
        world.rng.shuffle(facts)
    return " ".join(fact.sentence for fact in facts), _unambiguous(facts)


def _unambiguous(facts: list[Fact]) -> list[Answer]:
    """Keeps only questions which no other fact of the passage answers differently."""
    seen: dict[str, str] = {}
    clashing: set[str] = set()
    for fact in facts:
        for answer in fact.answers:
            for question in answer.questions:
                if seen.setdefault(question, answer.long) != answer.long:
                    clashing.add(question)
    kept = []
    for fact in facts:
        for answer in fact.answers:
            questions = tuple(q for q in answer.questions if q not in clashing)
            if questions:
                kept.append(Answer(questions, answer.long, answer.short))
    return kept
