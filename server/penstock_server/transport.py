"""The transport thread: grpc.aio on uvloop, serving one unix socket. Touches no torch and sleeps between messages."""

import asyncio
import queue
import threading
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import grpc
import uvloop

from penstock_server.health import Health
from penstock_server.messages import Message
from penstock_server.pb.shard.v1 import shard_pb2, shard_pb2_grpc
from penstock_server.progress import Progress
from penstock_server.service import ShardService

MESSAGE_LIMIT_BYTES = 64 * 1024 * 1024
DRAIN_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class _Running:
    service: ShardService
    loop: asyncio.AbstractEventLoop
    stopping: asyncio.Event


class Transport:
    """A gRPC server in a daemon thread."""

    def __init__(
        self, socket: Path, info: shard_pb2.InfoResponse, inbox: "queue.SimpleQueue[Message]", progress: Progress
    ) -> None:
        """Serves when it returns. Raises ValueError when the socket cannot be bound."""
        if not socket.parent.is_dir():
            raise ValueError(f"socket_path: there is no folder {socket.parent}")
        started: Future[_Running] = Future()

        async def serve() -> None:
            try:
                server, running = await _start(socket, info, inbox, progress)
            except BaseException as error:
                started.set_exception(error)
                return
            started.set_result(running)
            await running.stopping.wait()
            await server.stop(DRAIN_SECONDS)

        self._thread = threading.Thread(target=lambda: uvloop.run(serve()), name="transport", daemon=True)
        self._thread.start()
        self._running = started.result()
        self.service = self._running.service

    def stop(self) -> None:
        """Lets calls end for a moment, then closes the socket and ends the thread."""
        self._running.loop.call_soon_threadsafe(self._running.stopping.set)
        self._thread.join()


async def _start(
    socket: Path, info: shard_pb2.InfoResponse, inbox: "queue.SimpleQueue[Message]", progress: Progress
) -> tuple[grpc.aio.Server, _Running]:
    options = [
        ("grpc.max_receive_message_length", MESSAGE_LIMIT_BYTES),
        ("grpc.max_send_message_length", MESSAGE_LIMIT_BYTES),
        ("grpc.so_reuseport", 0),
    ]
    server = grpc.aio.server(options=options)
    service = ShardService(info, inbox)
    shard_pb2_grpc.add_ShardServicer_to_server(service, server)
    server.add_generic_rpc_handlers((Health(progress).handler(),))
    try:
        server.add_insecure_port(f"unix:{socket}")
    except RuntimeError as error:
        raise ValueError(f"socket_path: cannot listen on {socket}: {error}") from error
    await server.start()
    return server, _Running(service, asyncio.get_running_loop(), asyncio.Event())
