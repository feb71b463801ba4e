"""An answer over gRPC as it is made, ended early: `python examples/grpc/stream.py 127.0.0.1:3000 "Once"`."""

import sys

import grpc

import penstock_server.pb.penstock.v1 as penstock

ENOUGH = 20


def main(address: str, prompt: str) -> int:
    with grpc.insecure_channel(address) as channel:
        service = penstock.GenerationStub(channel)
        stream = service.GenerateStream(penstock.GenerateRequest(inputs=prompt, parameters=penstock.Parameters()))
        for message in stream:
            print(message.token.text, end="", flush=True)
            if message.index == ENOUGH:
                # The server stops at once; nothing more is computed.
                stream.cancel()
                break
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
