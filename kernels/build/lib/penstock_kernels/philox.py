"""Random numbers that are a function of a request's own coordinates, never of the batch: Philox4x32-10.

J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011, section 3.
The key is the seed (64 bits), the counter is (position, purpose, fork, 0). Shapes: S rows. Words are uint32 values
held in int64, as torch has no uint32 arithmetic on every device.
"""

import functools
from enum import IntEnum

import torch

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
WORD = 0xFFFFFFFF


class Purpose(IntEnum):
    """What a number is for: two purposes never share one. The values are part of what makes a seed reproducible."""

    SAMPLE = 0


def philox_ref(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """The four 32-bit words of one counter under one key, as the paper writes the rounds."""
    (a, b, c, d), (low, high) = counter, key
    for _ in range(ROUNDS):
        first, second = a * MULTIPLIERS[0], c * MULTIPLIERS[1]
        a, b, c, d = (second >> 32) ^ b ^ low, second & WORD, (first >> 32) ^ d ^ high, first & WORD
        low, high = (low + WEYL[0]) & WORD, (high + WEYL[1]) & WORD
    return a, b, c, d


def philox(counter: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """int64 [4, S] words of the counters int64 [4, S] under the keys int64 [2, S]; every value in [0, 2**32)."""
    factors, weyl = _constants(counter.device)
    # Each round does the same to words (0, 1) and (2, 3), so both pairs go through it as one [2, S] tensor. The pair
    # order alternates (c, a), (a, c), ... since a round's high words land in the other pair.
    ascending = (key + weyl).bitwise_and_(WORD)
    keys = (ascending.flip(1), ascending)
    heads, tails = counter[0::2], counter[1::2].flip(0)  # the tail beside a head is the one that meets its product
    for r in range(ROUNDS):
        # The product of two 32-bit words wraps in int64, but its bits are those of the unsigned product. What lies
        # above a word's 32 bits is cut off only where it would count: before the next product.
        product = heads * factors[r % 2]
        heads = (product >> 32).bitwise_xor_(tails).bitwise_xor_(keys[r % 2][r]).bitwise_and_(WORD)
        tails = product.flip(0)
    # An even number of rounds: heads are (a, c) again, and the flip above left tails as (d, b).
    return torch.stack((heads[0], tails[1], heads[1], tails[0])).bitwise_and_(WORD)


@functools.cache
def _constants(device: torch.device) -> tuple[tuple[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Multipliers [2, 1] in both orders, and what each round adds to the keys, [ROUNDS, 2, 1]."""
    factors = torch.tensor(MULTIPLIERS).view(2, 1)
    weyl = torch.arange(ROUNDS).view(ROUNDS, 1, 1) * torch.tensor(WEYL).view(2, 1)
    return (factors.to(device), factors.flip(0).to(device)), weyl.to(device)


def uniform_ref(seed: int, fork: int, position: int, purpose: Purpose) -> float:
    """One number in [0, 1), a multiple of 2**-53."""
    words = philox_ref((position, int(purpose), fork, 0), (seed & WORD, seed >> 32 & WORD))
    return (words[0] << 21 | words[1] >> 11) * 2.0**-53


def uniform(key: torch.Tensor, fork: torch.Tensor, position: torch.Tensor, purpose: Purpose) -> torch.Tensor:
    """float64 [S] in [0, 1), multiples of 2**-53.

    key: int64 [2, S], the seeds' low and high words; fork and position: int64 [S] in [0, 2**32).
    """
    return uniform_cpu(key, fork, position, purpose)


def uniform_cpu(key: torch.Tensor, fork: torch.Tensor, position: torch.Tensor, purpose: Purpose) -> torch.Tensor:
    """Plain torch, on any device."""
    counter = position.new_zeros((4, position.shape[0]))
    counter[0] = position
    counter[1] = int(purpose)
    counter[2] = fork
    words = philox(counter, key)
    return ((words[0] << 21) | (words[1] >> 11)).double().mul_(2.0**-53)
