"""`grpc.health.v1.Health`, answered from the engine's progress counter in constant time, without the device."""

import asyncio
from collections.abc import AsyncIterator

import grpc
from google.protobuf.wrappers_pb2 import Int32Value, StringValue  # type: ignore[import-untyped]

from penstock_server.progress import Progress

# The two messages of grpc.health.v1 hold one field each, number 1: a string, and an enum. On the wire they are these
# wrappers, so no second copy of a well-known file is registered beside one that a client may have loaded.
HealthCheckRequest = StringValue
HealthCheckResponse = Int32Value

SERVING, NOT_SERVING, SERVICE_UNKNOWN = 1, 2, 3
SERVICES = ("", "shard.v1.Shard")
WATCH_SECONDS = 1.0


class Health:
    """Knows the whole server ("") and the service `shard.v1.Shard`, which stand and fall together."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def handler(self) -> grpc.GenericRpcHandler:
        """To be added to a server."""
        check = grpc.unary_unary_rpc_method_handler(
            self._check, HealthCheckRequest.FromString, HealthCheckResponse.SerializeToString
        )
        watch = grpc.unary_stream_rpc_method_handler(
            self._watch, HealthCheckRequest.FromString, HealthCheckResponse.SerializeToString
        )
        return grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": check, "Watch": watch})

    async def _check(self, request: StringValue, context: grpc.aio.ServicerContext) -> Int32Value:
        status = self._status(request.value)
        if status == SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"unknown service {request.value!r}")
        return HealthCheckResponse(value=status)

    async def _watch(self, request: StringValue, context: grpc.aio.ServicerContext) -> AsyncIterator[Int32Value]:
        sent = None
        while True:
            status = self._status(request.value)
            if status != sent:
                yield HealthCheckResponse(value=status)
                sent = status
            await asyncio.sleep(WATCH_SECONDS)

    def _status(self, service: str) -> int:
        if service not in SERVICES:
            return SERVICE_UNKNOWN
        return SERVING if self._progress.healthy() else NOT_SERVING
