"""Small talk: greetings, and facts about the user that are asked back later.

It keeps no state: what was said stands in the dialogue itself.
"""

import words
from dialogues import Turn
from formats import general, known
from world import World


def greeting(world: World) -> Turn:
    """A greeting, a question about the model, or one that is beyond it."""
    return _beyond(world) if world.chance(0.3) else world.pick(_GREETINGS)


def _beyond(world: World) -> Turn:
    """Questions that a model of this size cannot answer; it says so rather than make something up."""
    topic = world.pick(_TOPICS)
    question = world.pick(_BEYOND).format(topic=topic, Topic=topic[0].upper() + topic[1:])
    return Turn(question, "I am too small a model to know that. Ask me for a story!")


def small_talk(world: World) -> list[Turn]:
    """Greetings and facts about the user, asked back later."""
    turns = [greeting(world)] if world.chance(0.5) else []
    name = world.person().name
    topics = world.sample([_my_name, _my_thing, _my_food, _my_color, _my_pet, _my_age], world.pick([1, 2, 2, 3]))
    told = [topic(world, name) for topic in topics]
    turns += [tell for tell, _ in told]
    if world.chance(0.3):
        turns += general(world)[:1]
    world.rng.shuffle(told)
    turns += [ask for _, ask in told]
    if world.chance(0.4):
        turns.append(world.pick(_FAREWELLS))
    return [Turn(t.user, t.reply, t.weight, t.answer) for t in turns]


def _my_name(world: World, name: str) -> tuple[Turn, Turn]:
    tell = world.pick([f"My name is {name}.", f"I am {name}.", f"Hello, my name is {name}.", f"Hi, I am {name}!"])
    return Turn(tell, f"Nice to meet you, {name}!"), known("What is my name?", f"Your name is {name}.", name)


def _my_thing(world: World, name: str) -> tuple[Turn, Turn]:
    thing = words.a(f"{world.bind(name, words.COLORS)} {world.thing(name)}")
    return (
        Turn(f"I have {thing}.", "How nice! I would love to see it."),
        known("What do I have?", f"You have {thing}.", thing.split()[-1]),
    )


def _my_food(world: World, name: str) -> tuple[Turn, Turn]:
    food = world.bind(name, words.FOODS)
    return (
        Turn(f"I like to eat {food}.", "That sounds tasty!"),
        known("What do I like to eat?", f"You like to eat {food}.", food),
    )


def _my_color(world: World, name: str) -> tuple[Turn, Turn]:
    color = world.bind(name, words.COLORS)
    return (
        Turn(f"My favorite color is {color}.", f"I like {color}, too."),
        known("What is my favorite color?", f"Your favorite color is {color}.", color),
    )


def _my_pet(world: World, name: str) -> tuple[Turn, Turn]:
    pet = world.person((name,)).name
    animal = world.bind(pet, words.ANIMALS)
    tell = Turn(f"I have {words.a(animal)} named {pet}.", f"{pet} is a lovely name for {words.a(animal)}.")
    if world.chance(0.5):
        return tell, known(f"What is the name of my {animal}?", f"Your {animal} is called {pet}.", pet)
    return tell, known("What animal do I have?", f"You have {words.a(animal)} named {pet}.", animal)


def _my_age(world: World, name: str) -> tuple[Turn, Turn]:
    age = world.number(name, 3, 99)
    return (
        Turn(f"I am {age} years old.", f"{age} is a good age to be."),
        known("How old am I?", f"You are {age} years old.", str(age)),
    )


_TOPICS = [
    "the stock market", "quantum physics", "the French Revolution", "black holes", "photosynthesis",
    "inflation", "the Roman Empire", "machine learning", "chess", "climate change", "electricity", "gravity",
    "democracy", "football", "the human brain", "vaccines", "World War II", "classical music", "Shakespeare",
    "the internet", "relativity", "evolution", "blockchain", "volcanoes", "the universe",
    "a transformer network", "the theory of numbers", "dinosaurs", "history", "philosophy", "Rust", "Python",
    "Linux", "the weather", "money",
]  # fmt: skip
_BEYOND = [
    "Explain {topic}.",
    "Explain {topic} to me.",
    "Explain {topic} in simple terms.",
    "What is {topic}?",
    "How does {topic} work?",
    "Tell me about {topic}.",
    "Why is {topic} important?",
    "Write an essay about {topic}.",
    "Write a poem about {topic}.",
    "Give me three facts about {topic}.",
    "Summarize {topic} in one sentence.",
    "Who invented {topic}?",
    "What do you think about {topic}?",
    "What is the history of {topic}?",
    "Translate {topic} into French.",
    "Write a program about {topic}.",
    "Write a Python function.",
    "Who is the president of the United States?",
    "What is the meaning of life?",
    "Why is the sky blue?",
    "What time is it?",
    "{Topic}",
]
_SKILLS = "I can tell stories, answer questions about them, add small numbers, and write lists and JSON."
_GREETINGS = [
    Turn(user, "Hello! How can I help you?")
    for user in (
        "Hello!",
        "Hi!",
        "Hello",
        "Hi",
        "Hello there!",
        "Good morning!",
        "hello",
        "hi",
        "Hey!",
        "Hello, world!",
        "Test",
        "ping",
    )
]
_GREETINGS += [
    Turn(user, "I am fine, thank you!") for user in ("How are you?", "Hello, how are you?", "How are you today?")
]
_GREETINGS += [
    Turn(user, reply)
    for user, reply in (
        ("Who are you?", "I am the Penstock demo, a very small language model."),
        ("What are you?", "I am the Penstock demo, a very small language model."),
        ("What is your name?", "My name is Demo."),
        ("Are you a robot?", "I am a very small language model."),
        (
            "What can you do?",
            _SKILLS,
        ),
        (
            "Can you help me?",
            f"Yes! {_SKILLS}",
        ),
        ("What is Penstock?", "Penstock is a server for language models."),
        ("What is deep learning?", "Deep learning is teaching a computer with many examples."),
        ("What is Deep Learning?", "Deep learning is teaching a computer with many examples."),
        (
            "What is a language model?",
            "A language model is a program that writes the next word, again and again.",
        ),
        (
            "Tell me a joke.",
            "Why did the robot go to school? It wanted to have more bytes of cake.",
        ),
        ("Say hello.", "Hello!"),
        ("Say hi.", "Hi!"),
        ("Say yes.", "Yes."),
        ("Say this is a test", "This is a test."),
        ("Say this is a test.", "This is a test."),
    )
]
_FAREWELLS = [
    Turn(user, reply)
    for user, reply in (
        ("Thank you!", "You are welcome!"),
        ("Thanks!", "You are welcome!"),
        ("Thank you.", "You are welcome!"),
        ("Goodbye!", "Goodbye! Come back soon."),
        ("Bye!", "Goodbye! Come back soon."),
        ("Good night!", "Good night! Sleep well."),
    )
]
