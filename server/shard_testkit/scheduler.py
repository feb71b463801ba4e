"""A small scheduler for tests: random blocks, random row order, plans in flight, cancellations and preemptions.

It keeps the rules of the protocol that the router keeps (fences, limits) and checks every answer against the integer
model's reference. What it does otherwise is chosen at random, from a seed. Any other model can be driven too.
"""

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from penstock_server.plan_encoding import NewSeat, PlanDraft, PlanRow
from penstock_server.row_status import RowStatus
from shard_testkit.integer import IntegerReference
from shard_testkit.results import Result

# As in the router, where a request is safe after the second: else one that runs alone might never end.
MAX_PREEMPTIONS = 2


@dataclass(slots=True)
class Request:
    """One stream. It ends by its length, by a NaN in its prompt, or when its client leaves."""

    prompt: list[int]
    num_new: int
    leaves_after: int | None = None  # tokens received
    chunk: int | None = None  # the prompt comes in pieces of exactly this size, the last one shorter
    answer: list[int] = field(default_factory=list)
    failed: RowStatus | None = None
    left: bool = False
    num_preemptions: int = 0


@dataclass(slots=True)
class _Running:
    """A request in a seat. Its tokens are planned ahead of the answers."""

    request: Request
    seat: int
    generation: int
    blocks: list[int]
    to_feed: list[int]
    num_fed: int = 0
    num_planned: int = 0  # samples planned since it took the seat
    num_received: int = 0
    last_plan: int = 0
    stopping: bool = False  # not planned again; gives up the seat
    yielding: bool = False  # not planned again; starts again in another seat

    @property
    def num_wanted(self) -> int:
        return self.request.num_new - len(self.request.answer) + self.num_received


@dataclass(frozen=True, slots=True)
class World:
    """What the scheduler may use."""

    num_seats: int
    num_blocks: int
    tokens_per_block: int
    max_rows: int
    max_tokens: int
    depth: int
    chunk: int  # most tokens of a prompt in one step, for requests without a size of their own
    preempt_share: float = 0.0  # probability per plan that a running request gives up its seat and starts again


class TestScheduler:
    """Drives one engine: `submit(plan_id, blob)` takes a plan, `receive()` returns the oldest answer."""

    __test__ = False

    def __init__(
        self,
        world: World,
        reference: IntegerReference | None,
        submit: Callable[[int, bytes], None],
        receive: Callable[[], Result],
        seed: int,
    ) -> None:
        """`reference`: knows the rows that may fail; None where none may."""
        self._world, self._reference, self._submit, self._receive = world, reference, submit, receive
        self._random = random.Random(seed)
        self._waiting: deque[Request] = deque()
        self._running: dict[int, _Running] = {}
        self._free_seats = list(range(world.num_seats))
        self._fenced_seats: list[tuple[int, int]] = []  # last plan that names it, seat
        self._free_blocks = list(range(1, world.num_blocks))
        self._generation = [0] * world.num_seats
        self._in_flight: deque[list[tuple[_Running, PlanRow, int]]] = deque()
        self._previous: list[PlanRow] | None = None
        self.plan_id = 0
        self._answered = 0
        self.num_same_rows = 0
        self.num_preempted = 0
        self.chunk_sizes: set[int] = set()  # of the pieces of prompts, but for the last ones

    def run(self, requests: list[Request]) -> None:
        """Until all requests have ended and every plan is answered."""
        self._waiting.extend(requests)
        while self._waiting or self._running or self._in_flight:
            while len(self._in_flight) < self._world.depth and self._send():
                pass
            assert self._in_flight, "nothing can run"
            self._answer(self._receive())
        assert sorted(self._free_blocks) == list(range(1, self._world.num_blocks))

    def _send(self) -> bool:
        """Plans and sends one step. False when nothing can run before the next answer."""
        draft = PlanDraft()
        self._release(draft)
        self._preempt(draft)
        self._admit(draft)
        planned = self._plan_rows(draft)
        if not (draft.rows or draft.frees or draft.registrations):
            return False
        same = self._previous == draft.rows and bool(draft.rows)
        if same:
            draft = PlanDraft(draft.frees, draft.registrations, draft.appends, draft.rows, same_rows=True)
            self.num_same_rows += 1
        repeatable = all(row.sample and not row.ids for row in draft.rows)
        self._previous = draft.rows if repeatable else None
        self.plan_id += 1
        self._submit(self.plan_id, draft.encode())
        self._in_flight.append(planned)
        return True

    def _release(self, draft: PlanDraft) -> None:
        """Frees the seats of requests that have ended; their blocks may be given to others in this very plan."""
        for running in [running for running in self._running.values() if running.stopping]:
            self._free(running, draft)

    def _free(self, running: _Running, draft: PlanDraft) -> None:
        draft.frees.append((running.seat, running.generation))
        self._free_blocks += running.blocks
        self._fenced_seats.append((self.plan_id + 1, running.seat))
        del self._running[running.seat]

    def _preempt(self, draft: PlanDraft) -> None:
        victims = [running for running in self._running.values() if running.request.num_preemptions < MAX_PREEMPTIONS]
        if victims and self._random.random() < self._world.preempt_share:
            self._random.choice(victims).yielding = True
        for running in list(self._running.values()):
            # It starts again from its tokens, so all of them must be known.
            if running.yielding and not running.stopping and running.last_plan <= self._answered:
                self._free(running, draft)
                self._waiting.appendleft(running.request)
                running.request.num_preemptions += 1
                self.num_preempted += 1

    def _admit(self, draft: PlanDraft) -> None:
        while self._waiting and self._free_seats and len(self._running) < self._world.max_rows:
            request = self._waiting[0]
            tokens = request.prompt + request.answer
            max_len = len(request.prompt) + request.num_new
            num_blocks = -(-max_len // self._world.tokens_per_block)
            if num_blocks > len(self._free_blocks):
                return
            self._waiting.popleft()
            seat = self._free_seats.pop(self._random.randrange(len(self._free_seats)))
            self._generation[seat] += 1
            self._random.shuffle(self._free_blocks)
            blocks = [self._free_blocks.pop() for _ in range(num_blocks)]
            self._running[seat] = _Running(request, seat, self._generation[seat], blocks, list(tokens))
            draft.registrations.append(NewSeat(seat, self._generation[seat], len(tokens), max_len))
            draft.appends.extend((seat, 0, index, block) for index, block in enumerate(blocks))

    def _plan_rows(self, draft: PlanDraft) -> list[tuple[_Running, PlanRow, int]]:
        """Rows in random order, a few requests left out, within the token budget."""
        planned, budget = [], self._world.max_tokens
        candidates = [running for running in self._running.values() if self._random.random() < 0.95]
        if not candidates and not self._in_flight:
            candidates = list(self._running.values())  # no answer would come that gives them another chance
        if self._previous is not None and len(candidates) == len(self._previous):
            seats = [row.seat for row in self._previous]
            candidates.sort(key=lambda running: seats.index(running.seat) if running.seat in seats else -1)
        else:
            self._random.shuffle(candidates)
        for running in candidates:
            if running.stopping or running.yielding or not budget:
                continue
            if running.to_feed:
                count = self._chunk(running, budget)
                if not count:
                    continue
                ids, running.to_feed = running.to_feed[:count], running.to_feed[count:]
                row = PlanRow(running.seat, not running.to_feed, running.num_fed, tuple(ids))
            elif running.num_planned < running.num_wanted:
                count, row = 1, PlanRow(running.seat)
            else:
                continue
            budget -= count
            running.num_fed += count
            running.num_planned += row.sample
            running.last_plan = self.plan_id + 1
            draft.rows.append(row)
            planned.append((running, row, running.num_fed))
        return planned

    def _chunk(self, running: _Running, budget: int) -> int:
        """How many tokens of its prompt a request is fed; 0: it waits for a plan with room for its own size."""
        own, left = running.request.chunk, len(running.to_feed)
        count = min(own or self._world.chunk, left)
        if count > budget:
            count = 0 if own else budget
        if 0 < count < left:
            self.chunk_sizes.add(count)
        return count

    def _answer(self, result: Result) -> None:
        """Checks one answer, row by row, and gives the tokens to the requests."""
        planned = self._in_flight.popleft()
        assert len(result.rows) == len(planned)
        for answer, (running, row, num_fed) in zip(result.rows, planned, strict=True):
            assert (answer.seat, answer.generation, answer.position) == (row.seat, running.generation, num_fed)
            if answer.status != RowStatus.OK:
                self._fail(running, answer.status)
                continue
            assert len(answer.tokens) == row.sample
            self._take(running, answer.tokens)
        done = self._answered = result.plan_id
        self._free_seats += [seat for last, seat in self._fenced_seats if last <= done]
        self._fenced_seats = [(last, seat) for last, seat in self._fenced_seats if last > done]

    def _fail(self, running: _Running, status: RowStatus) -> None:
        request = running.request
        first = request.failed is None
        assert status == (RowStatus.NAN if first else RowStatus.DEAD)
        may_fail = self._reference is not None and self._reference.nan_token in request.prompt
        assert may_fail, f"a request without a NaN failed with {status.name}"
        request.failed = request.failed or status
        running.stopping = True

    def _take(self, running: _Running, tokens: tuple[int, ...]) -> None:
        request = running.request
        running.num_received += len(tokens)
        if request.left or not tokens:
            return
        request.answer.extend(tokens)
        if request.leaves_after is not None and len(request.answer) >= request.leaves_after:
            request.left = True
        running.stopping = request.left or len(request.answer) == request.num_new


def make_requests(reference: IntegerReference, count: int, seed: int, longest: int = 60) -> list[Request]:
    """Requests of mixed lengths: a third of the clients leave early, every eighth prompt holds a NaN token."""
    rng = random.Random(seed)
    requests = []
    for index in range(count):
        prompt = [rng.randrange(reference.vocab_size - 1) for _ in range(rng.randint(1, longest))]
        if index % 8 == 7:
            prompt[rng.randrange(len(prompt))] = reference.nan_token
        num_new = rng.randint(1, longest // 2)
        leaves_after = rng.randint(1, num_new) if rng.random() < 1 / 3 else None
        requests.append(Request(prompt, num_new, leaves_after))
    return requests


def check_answers(reference: IntegerReference, requests: list[Request]) -> None:
    """Every request got exactly the reference's tokens, as far as it went."""
    for number, request in enumerate(requests):
        expected, failed = reference.generate(request.prompt, request.num_new), None
        if reference.nan_token in request.prompt:
            expected, failed = [], RowStatus.NAN
        elif request.left:
            assert len(request.answer) >= request.leaves_after
            expected = expected[: len(request.answer)]
        got = (request.answer, request.failed)
        assert got == (expected, failed), f"stream {number}: {request}, expected {expected}"
