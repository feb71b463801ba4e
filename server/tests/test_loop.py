"""The engine loop with a stand-in for the engine: how many plans it launches ahead, and in which order it answers."""

import queue
import threading
from pathlib import Path

import pytest
from shard_testkit.limits import LIMITS

from penstock_server import loop, progress
from penstock_server.loop import EngineLoop
from penstock_server.messages import (
    PlanArrived,
    ProfileSteps,
    StepDone,
    Stop,
    StreamBroken,
    StreamClosed,
    StreamOpened,
)
from penstock_server.plan_checks import PlanError
from penstock_server.plan_encoding import PlanDraft
from penstock_server.progress import Progress

TIMEOUT_SECONDS = 30


class FakeTicket:
    def __init__(self, plan_id):
        self.plan_id = plan_id
        self.done = threading.Event()


class FakeEngine:
    """Writes down what is asked of it. Steps end when the test says so."""

    limits = LIMITS

    def __init__(self):
        self.events = queue.SimpleQueue()
        self.tickets = {}
        self.refused = None
        self.idle_work = 0

    @property
    def has_idle_work(self):
        return self.idle_work > 0

    def use_idle_time(self, is_awaited):
        self.idle_work -= 1
        self.events.put(("idle", is_awaited()))

    def launch(self, plan):
        if plan.plan_id == self.refused:
            raise PlanError("no such seat")
        self.tickets[plan.plan_id] = FakeTicket(plan.plan_id)
        self.events.put(("launch", plan.plan_id))
        return self.tickets[plan.plan_id]

    def collect(self, ticket):
        assert ticket.done.wait(TIMEOUT_SECONDS)
        self.events.put(("collect", ticket.plan_id))
        return ticket.plan_id

    def clear(self):
        self.events.put(("clear",))

    def profile(self, num_steps, folder):
        self.events.put(("profile", num_steps, folder))


class FakeStream:
    def __init__(self, events):
        self._events = events

    def send_opened(self):
        self._events.put(("opened",))

    def send(self, result):
        self._events.put(("send", result))

    def end(self, error):
        self._events.put(("end", error))


class Driver:
    def __init__(self, depth):
        self.engine = FakeEngine()
        self.inbox = queue.SimpleQueue()
        self.progress = Progress()
        self.progress.ready = True
        engine_loop = EngineLoop(self.engine, self.inbox, depth, self.progress)
        self.codes = queue.SimpleQueue()
        self.thread = threading.Thread(target=lambda: self.codes.put(engine_loop.run()), daemon=True)
        self.thread.start()
        self.stream = FakeStream(self.engine.events)

    def plan(self, plan_id, blob=None):
        self.inbox.put(PlanArrived(self.stream, plan_id, PlanDraft().encode() if blob is None else blob))

    def finish(self, plan_id):
        self.engine.tickets[plan_id].done.set()
        self.inbox.put(StepDone())

    def expect(self, *events):
        assert [self.engine.events.get(timeout=TIMEOUT_SECONDS) for _ in events] == list(events)

    def expect_nothing(self):
        with pytest.raises(queue.Empty):
            self.engine.events.get(timeout=0.1)

    def open(self):
        self.inbox.put(StreamOpened(self.stream))
        self.expect(("opened",))


@pytest.fixture
def driver(request):
    driver = Driver(getattr(request, "param", 2))
    yield driver
    for ticket in driver.engine.tickets.values():
        ticket.done.set()
    driver.inbox.put(Stop(0, "the test is over"))
    driver.thread.join(TIMEOUT_SECONDS)
    assert not driver.thread.is_alive()


@pytest.mark.parametrize("driver", [1, 2, 3], indirect=True)
def test_at_most_depth_plans_are_in_flight(driver, request):
    depth = request.node.callspec.params["driver"]
    driver.open()
    for plan_id in range(1, 7):
        driver.plan(plan_id)
    driver.expect(*(("launch", plan_id) for plan_id in range(1, depth + 1)))
    driver.expect_nothing()
    for plan_id in range(1, 7 - depth):
        driver.finish(plan_id)
        driver.expect(("collect", plan_id), ("send", plan_id), ("launch", plan_id + depth))


def test_a_step_is_answered_while_no_other_plan_comes(driver):
    """A loop that waited for a second plan first would never answer."""
    driver.open()
    driver.plan(1)
    driver.expect(("launch", 1))
    driver.finish(1)
    driver.expect(("collect", 1), ("send", 1))


def test_a_stream_that_closes_is_drained_and_cleared(driver):
    driver.open()
    for plan_id in (1, 2, 3):
        driver.plan(plan_id)
    driver.expect(("launch", 1), ("launch", 2))
    driver.inbox.put(StreamClosed(driver.stream))
    for plan_id in (1, 2):
        driver.finish(plan_id)
    driver.expect(("collect", 1), ("send", 1), ("launch", 3), ("collect", 2), ("send", 2))
    driver.finish(3)
    driver.expect(("collect", 3), ("send", 3), ("end", None), ("clear",))
    driver.plan(4)  # from a stream that is gone
    driver.inbox.put(StreamClosed(driver.stream))
    driver.expect_nothing()
    driver.open()
    driver.plan(1)
    driver.expect(("launch", 1))


@pytest.mark.parametrize("refusal", ["engine", "blob", "id"])
def test_a_refused_plan_ends_the_stream_after_the_answers_before_it(driver, refusal):
    driver.engine.refused = 2 if refusal == "engine" else None
    text = {"engine": "plan 2: no such seat", "blob": "plan 2: plan of 0 bytes", "id": "plan 5: plan id 5, expected 2"}
    driver.open()
    driver.plan(1)
    driver.expect(("launch", 1))
    driver.plan(5 if refusal == "id" else 2, b"" if refusal == "blob" else None)
    driver.finish(1)
    events = [driver.engine.events.get(timeout=TIMEOUT_SECONDS) for _ in range(4)]
    assert [event[0] for event in events] == ["collect", "send", "end", "clear"]
    assert events[2][1].startswith(text[refusal])


def test_a_broken_stream_ends_after_the_answers_before_it(driver):
    driver.open()
    driver.plan(1)
    driver.inbox.put(StreamBroken(driver.stream, "a mask"))
    driver.expect(("launch", 1))
    driver.finish(1)
    driver.expect(("collect", 1), ("send", 1), ("end", "a mask"), ("clear",))


def test_stop_answers_what_was_received(driver):
    driver.open()
    for plan_id in (1, 2, 3):
        driver.plan(plan_id)
    driver.expect(("launch", 1), ("launch", 2))
    driver.inbox.put(Stop(5, "enough"))
    driver.finish(1)
    driver.finish(2)
    driver.expect(("collect", 1), ("send", 1), ("launch", 3), ("collect", 2), ("send", 2))
    driver.finish(3)
    driver.expect(("collect", 3), ("send", 3), ("end", None), ("clear",))
    assert driver.codes.get(timeout=TIMEOUT_SECONDS) == 5


def test_progress_counts_plans(driver, monkeypatch):
    """With no time to stall, only being idle is healthy."""
    monkeypatch.setattr(progress, "STALL_SECONDS", 0.0)
    driver.open()
    assert driver.progress.healthy()
    driver.plan(1)
    driver.plan(2)
    driver.expect(("launch", 1), ("launch", 2))
    assert not driver.progress.healthy()
    driver.finish(1)
    driver.expect(("collect", 1), ("send", 1))
    assert not driver.progress.healthy()
    driver.finish(2)
    driver.expect(("collect", 2), ("send", 2))
    assert driver.progress.healthy()


def test_a_profile_reaches_the_engine(driver):
    driver.inbox.put(ProfileSteps(3, Path("/tmp")))
    driver.expect(("profile", 3, Path("/tmp")))


def test_an_idle_time_is_used_but_not_while_a_plan_is_in_flight(driver, monkeypatch):
    monkeypatch.setattr(loop, "IDLE_SECONDS", 0.02)
    driver.open()
    driver.plan(1)
    driver.expect(("launch", 1))
    driver.engine.idle_work = 2
    driver.expect_nothing()
    driver.finish(1)
    driver.expect(("collect", 1), ("send", 1), ("idle", False), ("idle", False))
    driver.expect_nothing()
