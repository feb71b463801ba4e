"""The seeded dice of the generator, and the split between training and held-out combinations.

Every binding of a name to a value goes through `bind`, so that a held-out binding can never occur
in training text. It knows nothing of sentences.
"""

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import words

T = TypeVar("T")
HELDOUT_SHARE = 10


def is_heldout(*parts: object) -> bool:
    """Whether this combination belongs to the held-out tenth; the same on every machine."""
    text = "|".join(str(part) for part in parts)
    return zlib.crc32(text.encode()) % HELDOUT_SHARE == 0


@dataclass(frozen=True)
class Person:
    """A character; `they`, `them`, `their` are already singular (she, her, her)."""

    name: str
    kind: str
    they: str
    them: str
    their: str


class World:
    """Draws everything that a text is about. One per text stream; not thread-safe."""

    def __init__(self, seed: int, heldout: bool = False) -> None:
        self.rng = random.Random(seed)
        self.heldout = heldout

    def pick(self, items: Sequence[T]) -> T:
        return items[int(self.rng.random() * len(items))]

    def chance(self, share: float) -> bool:
        return self.rng.random() < share

    def sample(self, items: Sequence[T], count: int) -> list[T]:
        return self.rng.sample(items, count)

    def allows(self, *parts: object) -> bool:
        """Whether this stream may use the combination."""
        return is_heldout(*parts) == self.heldout

    def bind(self, owner: object, items: Sequence[T]) -> T:
        """A value that this stream may bind to the owner; LookupError if none turns up."""
        for _ in range(200):
            item = self.pick(items)
            if self.allows(owner, item):
                return item
        raise LookupError(owner)

    def person(self, avoid: Sequence[str] = ()) -> Person:
        """A character whose name is not in use yet."""
        while True:
            name = self.pick(words.NAMES)
            if name not in avoid:
                break
        girl = name in words.GIRLS
        if not self.heldout and self.chance(0.05):
            name = words.invented_name(self.rng)
        if self.chance(0.12):
            kind = "girl" if girl else "boy"
        else:
            wrong = words.ONLY_HE if girl else words.ONLY_SHE
            kind = self.bind(name, [animal for animal in words.ANIMALS if animal not in wrong])
        return Person(name, kind, *(("she", "her", "her") if girl else ("he", "him", "his")))

    def place(self, owner: str) -> str:
        """'in the forest', bound to the owner."""
        return "{} the {}".format(*self.bind(owner, words.PLACES))

    def thing(self, owner: str) -> str:
        return self.bind(owner, words.THINGS)

    def look(self) -> str:
        """A colour or another visible quality."""
        return self.pick(words.COLORS if self.chance(0.65) else words.LOOKS)

    def number(self, owner: str, low: int, high: int) -> int:
        return self.bind(owner, range(low, high + 1))
