"""Word lists of the demo model's little world, and the grammar helpers that go with them.

Every word here is ordinary English. The lists decide the tokenizer's vocabulary, so a change in
them needs a new tokenizer and a new training run. It knows nothing of stories or questions.
"""

import random


def _split(text: str) -> list[str]:
    return text.split()


GIRLS = _split("""
    Mia Anna Bella Clara Daisy Ella Emma Flora Grace Hana Iris Ivy Jenny Julia Kate Lena Lily
    Lucy Maya Molly Nina Nora Olive Penny Poppy Rosa Ruby Sara Sofia Stella Tara Tina Vera Willa
    Zoe Maria Leila Amara Freya Greta
""")
BOYS = _split("""
    Tom Adam Ben Carlos Dan Eli Finn Felix George Hugo Ivan Jack Jonas Kai Leo Liam Lucas Max
    Milo Nico Noah Oscar Otto Owen Paul Peter Ravi Remy Sam Simon Theo Tim Victor Will Yusuf
    Zack Omar Henry Arlo Bruno
""")
NAMES = GIRLS + BOYS

ANIMALS = _split("""
    fox owl bear rabbit mouse cat dog duck frog hedgehog squirrel badger otter beaver deer wolf
    lion tiger elephant giraffe monkey zebra penguin turtle snail bee ant spider crow robin
    goose swan goat sheep cow horse pony pig donkey hen rooster lamb kitten puppy koala panda
    kangaroo camel dolphin whale seal crab dragon unicorn parrot lizard mole moose bat
""")

ONLY_SHE, ONLY_HE = ("hen", "cow"), ("rooster",)

THINGS = _split("""
    lantern kite drum key map boat bell book ball hat scarf coat basket bucket rope ladder
    candle mirror clock compass umbrella whistle flute trumpet guitar violin button ribbon
    feather shell pebble stone coin ring crown cup plate spoon kettle teapot jar bottle box bag
    blanket pillow lamp chair table stool wagon cart sled bicycle wheel balloon puppet doll
    marble puzzle crayon pencil brush painting letter postcard stamp notebook glove mitten boot
    shoe sock belt necklace bracelet telescope magnet hammer shovel rake net anchor paddle raft
    tent backpack flag robot rocket seed acorn leaf flower mushroom pinecone egg cookie cake pie
    pumpkin apple pear plum carrot muffin sandwich pancake camera radio phone computer train car
    truck plane ship spaceship sword shield wand potion diamond pearl teddy broom fan globe harp
    pen ruler star
""")

FOODS = _split("""
    apples pears plums peaches berries carrots cookies muffins pancakes honey soup bread cheese
    nuts cherries grapes noodles corn beans porridge jam popcorn oranges melons tomatoes rice
    salad pizza pasta chocolate yogurt peas potatoes lemons bananas toast
""")

COLORS = _split("red blue green yellow orange purple pink white black brown gray golden silver")
LOOKS = _split("old shiny tiny big round wooden little heavy beautiful strange new smooth lovely")
TRAITS = _split("""
    brave curious kind clever gentle cheerful quiet young clumsy patient lonely merry shy wise
    sleepy playful friendly hungry tiny small
""")
FEELINGS = _split("happy sad proud tired excited calm nervous surprised cold hungry sleepy bored")
JOBS = _split("""
    baker farmer teacher doctor painter sailor gardener singer builder cook nurse writer dancer
    pilot driver tailor
""")

# The preposition goes with the noun: nobody is "at the cave" or "in the hill".
PLACES = [
    (prep, noun)
    for prep, nouns in {
        "in": """forest barn garden cave village kitchen attic cellar meadow valley library castle
        tower park orchard tent school market city desert jungle cabin field shed palace""",
        "on": "hill island beach mountain farm roof porch bridge ship train",
        "by": "river lake pond sea stream waterfall well fence gate fountain",
        "under": "tree stairs bench bed",
        "at": "harbor station bakery mill museum",
    }.items()
    for noun in nouns.split()
]
_NO_HOMES = ("bench", "bridge", "fence", "gate", "market", "bed", "porch", "roof", "beach")
HOMES = [(prep, noun) for prep, noun in PLACES if noun not in _NO_HOMES]

OPPOSITES = _split("""
    hot/cold big/small happy/sad day/night up/down fast/slow old/new wet/dry light/dark
    open/closed hard/soft full/empty early/late high/low loud/quiet long/short near/far
    clean/dirty strong/weak thick/thin left/right first/last good/bad rich/poor sweet/sour
""")
CAPITALS = _split("""
    France/Paris Germany/Berlin Italy/Rome Spain/Madrid Portugal/Lisbon England/London Ireland/Dublin
    Norway/Oslo Sweden/Stockholm Denmark/Copenhagen Finland/Helsinki Poland/Warsaw Austria/Vienna
    Greece/Athens Hungary/Budapest Turkey/Ankara Egypt/Cairo Kenya/Nairobi Japan/Tokyo China/Beijing
    Canada/Ottawa Brazil/Brasilia Peru/Lima Chile/Santiago Cuba/Havana Australia/Canberra
""")
SOUNDS = _split("""
    cow/moo dog/woof cat/meow duck/quack sheep/baa pig/oink horse/neigh owl/hoot frog/ribbit
    bee/buzz lion/roar mouse/squeak crow/caw
""")
BABIES = _split("""
    cat/kitten dog/puppy sheep/lamb cow/calf horse/foal duck/duckling bear/cub goat/kid
    deer/fawn hen/chick
""")
TYPICAL = _split("""
    sky/blue grass/green snow/white sun/yellow coal/black carrot/orange tomato/red banana/yellow
    frog/green elephant/gray pig/pink chocolate/brown
""")
DAYS = _split("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = _split("""
    January February March April May June July August September October November December
""")
NUMBER_WORDS = _split("zero one two three four five six seven eight nine ten")

_IRREGULAR = {
    "mouse": "mice",
    "goose": "geese",
    "leaf": "leaves",
    "scarf": "scarves",
    "wolf": "wolves",
    "deer": "deer",
    "sheep": "sheep",
    "moose": "moose",
}
_SYLLABLES = _split("""
    ba be bo da del do fa fi ga go ka ki la lo lu ma mi na ne ni po ra ri sa ta to va zu
""")


def a(noun_phrase: str) -> str:
    """The phrase with its indefinite article."""
    vowel = noun_phrase[0] in "aeio" or noun_phrase.startswith("umbrella")
    return f"{'an' if vowel else 'a'} {noun_phrase}"


def plural(noun: str) -> str:
    """The plural of a noun of these lists."""
    if noun in _IRREGULAR:
        return _IRREGULAR[noun]
    if noun.endswith(("s", "x", "ch", "sh", "tomato", "potato")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def counted(noun: str, count: int) -> str:
    """The noun as it follows a number: '1 kite', '0 kites'."""
    return noun if count == 1 else plural(noun)


def join_and(items: list[str]) -> str:
    """'x', 'x and y', 'x, y and z'."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def invented_name(rng: random.Random) -> str:
    """A name in no list: teaches copying of words that are several tokens long."""
    return "".join(rng.choice(_SYLLABLES) for _ in range(rng.choice((2, 3)))).capitalize()
