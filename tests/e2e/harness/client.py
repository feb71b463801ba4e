"""A client of the native streaming route, on httpx."""

import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx

# A hang guard; a stream of these tests takes seconds at most.
TIMEOUT_S = 120


def body(prompt: str, num_tokens: int, **parameters: Any) -> dict[str, Any]:
    return {"inputs": prompt, "parameters": {"max_new_tokens": num_tokens, "details": True, **parameters}}


@dataclass
class Answer:
    """What a stream brought."""

    ids: list[int] = field(default_factory=list)
    error: dict[str, Any] | None = None
    finish_reason: str | None = None

    def take(self, event: dict[str, Any]) -> None:
        if "error" in event:
            self.error = event
            return
        self.ids.append(event["token"]["id"])
        if event.get("details"):
            self.finish_reason = event["details"]["finish_reason"]


def parse(line: str) -> dict[str, Any] | None:
    """The event of one line of an SSE stream."""
    return json.loads(line.removeprefix("data:")) if line.startswith("data:") else None


def events(url: str, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Events of one stream as they come; a connection that breaks raises httpx's error."""
    with httpx.stream("POST", f"{url}/generate_stream", json=request, timeout=TIMEOUT_S) as response:
        for line in response.iter_lines():
            if event := parse(line):
                yield event


async def async_events(session: httpx.AsyncClient, url: str, request: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    async with session.stream("POST", f"{url}/generate_stream", json=request) as response:
        async for line in response.aiter_lines():
            if event := parse(line):
                yield event


def generate(url: str, request: dict[str, Any]) -> Answer:
    """A whole stream."""
    answer = Answer()
    for event in events(url, request):
        answer.take(event)
    return answer


def metric(url: str, name: str) -> float:
    """The value of a gauge or counter without labels."""
    for line in httpx.get(f"{url}/metrics", timeout=TIMEOUT_S).text.splitlines():
        if line.startswith(f"{name} "):
            return float(line.split()[1])
    raise AssertionError(f"no metric {name}")
