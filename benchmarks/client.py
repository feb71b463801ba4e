"""A streaming client of the OpenAI chat route that costs little CPU, so that both servers are measured and not it."""

import asyncio
import json
import time
from dataclasses import dataclass, field


@dataclass(slots=True)
class Stream:
    """Arrival times, in seconds, of one streamed answer."""

    started: float
    arrivals: list[float] = field(default_factory=list)
    tokens: int = 0

    @property
    def time_to_first_token(self) -> float:
        return self.arrivals[0] - self.started

    @property
    def gaps(self) -> list[float]:
        return [after - before for before, after in zip(self.arrivals, self.arrivals[1:], strict=False)]


@dataclass(frozen=True, slots=True)
class Load:
    """What every client of a round asks for."""

    port: int
    model: str
    prompt: str
    max_tokens: int


async def chat(load: Load, client: int) -> Stream:
    """Streams one answer. Raises RuntimeError with the server's words when it is not a stream of chunks."""
    body = json.dumps(
        {
            "model": load.model,
            # The number keeps the clients of a round apart, so that no server can answer from a cache.
            "messages": [{"role": "user", "content": f"{client} {load.prompt}"}],
            "max_tokens": load.max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", load.port, limit=1 << 20)
    stream = Stream(time.perf_counter())
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    writer.write(head.encode() + body)
    try:
        status = await reader.readline()
        if b" 200 " not in status:
            raise RuntimeError((status + await reader.read(2000)).decode(errors="replace"))
        await _read_chunks(reader, stream)
    finally:
        writer.close()
    if not stream.arrivals:
        raise RuntimeError("the answer held no chunk with content")
    return stream


async def _read_chunks(reader: asyncio.StreamReader, stream: Stream) -> None:
    while line := await reader.readline():
        if not line.startswith(b"data: {"):
            if line.startswith(b"data: [DONE]"):
                return
            continue
        chunk = json.loads(line[6:])
        if "error" in chunk:
            raise RuntimeError(line.decode(errors="replace"))
        if usage := chunk.get("usage"):
            stream.tokens = usage["completion_tokens"]
        if chunk.get("choices") and chunk["choices"][0].get("delta", {}).get("content"):
            stream.arrivals.append(time.perf_counter())


async def run(load: Load, clients: int) -> tuple[float, list[Stream]]:
    """All clients at once: seconds from the first request to the last token, and their streams."""
    started = time.perf_counter()
    streams = await asyncio.gather(*(chat(load, client) for client in range(clients)))
    return time.perf_counter() - started, list(streams)
