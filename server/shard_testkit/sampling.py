"""Requests for a sampler without an engine: registrations of every kind, rows and logits."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from penstock_kernels.logprobs import Logprobs
from penstock_server.registrations import NUM_WORDS, SeatFlag, SeatRegistrations, Word
from penstock_server.sampling import SampleOutput, Sampler, SampleRows, SamplerSizes

CPU = torch.device("cpu")
VOCAB = 301  # odd, so that rows begin at every alignment
PROMPT_LEN = 4
NUM_SEATS = 80


@dataclass
class Request:
    """What a test registers; the defaults are those of a greedy request."""

    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    typical_p: float = 1.0
    min_p: float = 0.0
    seed: int = 1
    fork: int = 0
    lane: int = -1
    repetition: float = 1.0
    frequency: float = 0.0
    presence: float = 0.0
    logprobs: bool = False
    raw: bool = False
    num_top: int = 0
    min_new: int = 0
    bias: dict[int, float] = field(default_factory=dict)
    banned: tuple[int, ...] = ()
    min_length_ids: tuple[int, ...] = ()
    history: tuple[int, ...] = ()
    num_generated: int = 0

    def words(self, seat: int) -> np.ndarray:
        """The fixed part of the record, int32 [NUM_WORDS]."""
        flags = SeatFlag.DO_SAMPLE * self.do_sample | SeatFlag.LOGPROBS * self.logprobs
        words = np.zeros(NUM_WORDS, np.int32)
        floats = words.view(np.float32)
        words[Word.SEAT], words[Word.GENERATION], words[Word.MODE] = seat, 1, 1
        words[Word.PROMPT_LEN], words[Word.MAX_LEN] = PROMPT_LEN, 100
        words[Word.FLAGS] = flags | SeatFlag.RAW_LOGPROBS * self.raw
        words[[Word.SEED_LOW, Word.SEED_HIGH]] = np.array([self.seed], np.uint64).view(np.int32)
        words[Word.PENALTY_LANE], words[Word.FORK] = self.lane, self.fork
        words[Word.TOP_K], words[Word.NUM_TOP_LOGPROBS] = self.top_k, self.num_top
        words[Word.MIN_NEW_TOKENS], words[Word.NUM_GENERATED] = self.min_new, self.num_generated
        floats[Word.TEMPERATURE], floats[Word.TOP_P], floats[Word.MIN_P] = self.temperature, self.top_p, self.min_p
        floats[Word.TYPICAL_P], floats[Word.REPETITION_PENALTY] = self.typical_p, self.repetition
        floats[Word.FREQUENCY_PENALTY], floats[Word.PRESENCE_PENALTY] = self.frequency, self.presence
        words[Word.NUM_BIAS], words[Word.NUM_BANNED] = len(self.bias), len(self.banned)
        words[Word.NUM_MIN_LENGTH_IDS], words[Word.NUM_HISTORY] = len(self.min_length_ids), len(self.history)
        return words


def registrations(requests: dict[int, Request]) -> SeatRegistrations:
    """Records of the requests by seat."""

    def flat(lists: Iterable[Iterable[float]], dtype: type = np.int32) -> np.ndarray:
        return np.array([value for values in lists for value in values], dtype)

    every = requests.values()
    return SeatRegistrations(
        words=np.stack([request.words(seat) for seat, request in requests.items()]),
        bias_ids=flat(request.bias.keys() for request in every),
        bias_values=flat((request.bias.values() for request in every), np.float32),
        banned_ids=flat(request.banned for request in every),
        min_length_ids=flat(request.min_length_ids for request in every),
        history_ids=flat(request.history for request in every),
    )


class KeepingSampler(Sampler):
    """Its answers outlive its next step."""

    def sample(self, logits: torch.Tensor, rows: SampleRows) -> SampleOutput:
        found = super().sample(logits, rows)
        logprobs = None if found.logprobs is None else Logprobs(*(part.clone() for part in found.logprobs))
        return SampleOutput(found.ids.clone(), found.bad.clone(), logprobs)


def sampler_of(requests: list[Request] | dict[int, Request], vocab: int = VOCAB, device: torch.device = CPU) -> Sampler:
    """A sampler of NUM_SEATS seats, in which the requests hold theirs (in a list: from 0 on)."""
    sampler = KeepingSampler(SamplerSizes(NUM_SEATS, 40, vocab, NUM_SEATS + 16, 20), device)
    sampler.register(registrations(requests if isinstance(requests, dict) else dict(enumerate(requests))))
    return sampler


def rows_of(seats: list[int], position: int | list[int] = PROMPT_LEN, device: torch.device = CPU) -> SampleRows:
    """Rows of these seats at one position, or each at its own."""
    host = np.array(seats, np.int64)
    positions = torch.tensor(position).expand(len(seats)).contiguous()
    return SampleRows(torch.from_numpy(host.copy()).to(device), positions.to(device), host)


def random_logits(num_rows: int, vocab: int = VOCAB, seed: int = 0) -> torch.Tensor:
    """float32 [num_rows, vocab] on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((num_rows, vocab), generator=generator) * 3


def mixture(count: int) -> list[Request]:
    """Requests of every kind, in turn."""
    kinds: list[dict[str, Any]] = [
        {},
        {"do_sample": True},
        {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.9},
        {"repetition": 1.3, "history": (1, 2, 3, 4)},
        {"do_sample": True, "min_p": 0.05, "typical_p": 0.9, "logprobs": True, "num_top": 3},
        {"frequency": 0.5, "presence": 0.2, "history": (5, 6, 7, 8, 8), "num_generated": 1, "logprobs": True},
        {"do_sample": True, "bias": {3: 5.0, 9: -2.0}, "banned": (0, 1), "raw": True, "logprobs": True, "num_top": 5},
        {"min_length_ids": (2, 9), "min_new": 3},
        {"temperature": 0.2, "top_k": 3, "top_p": 0.2, "typical_p": 0.2, "min_p": 0.9, "logprobs": True, "num_top": 4},
        {"do_sample": True, "top_p": 0.5, "repetition": 1.1, "frequency": 0.1, "history": (9, 9, 9, 9)},
    ]
    kinds = [kinds[index % len(kinds)] for index in range(count)]
    lanes = np.cumsum(["history" in kind for kind in kinds]) - 1
    return [
        Request(seed=1000 + index, lane=int(lanes[index]) if "history" in kind else -1, **kind)
        for index, kind in enumerate(kinds)
    ]
