"""The public gRPC service: `import penstock_server.pb.penstock.v1 as penstock`. Written by hand; docs/grpc.md."""

from penstock_server.pb.penstock.v1.generation_pb2 import (
    Details,
    FinishReason,
    GenerateRequest,
    GenerateResponse,
    GenerateStreamResponse,
    InfoRequest,
    InfoResponse,
    Parameters,
    PrefillToken,
    Scheduling,
    StreamDetails,
    TextToken,
    Token,
    TokenizeRequest,
    TokenizeResponse,
    TopTokens,
)
from penstock_server.pb.penstock.v1.generation_pb2_grpc import (
    GenerationServicer,
    GenerationStub,
    add_GenerationServicer_to_server,
)

__all__ = [
    "Details",
    "FinishReason",
    "GenerateRequest",
    "GenerateResponse",
    "GenerateStreamResponse",
    "GenerationServicer",
    "GenerationStub",
    "InfoRequest",
    "InfoResponse",
    "Parameters",
    "PrefillToken",
    "Scheduling",
    "StreamDetails",
    "TextToken",
    "Token",
    "TokenizeRequest",
    "TokenizeResponse",
    "TopTokens",
    "add_GenerationServicer_to_server",
]
