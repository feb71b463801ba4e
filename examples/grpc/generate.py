"""A whole answer over gRPC, within a deadline: `python examples/grpc/generate.py 127.0.0.1:3000 "Once upon a time"`."""

import sys

import grpc

import penstock_server.pb.penstock.v1 as penstock


def main(address: str, prompt: str) -> int:
    with grpc.insecure_channel(address) as channel:
        service = penstock.GenerationStub(channel)
        parameters = penstock.Parameters(max_new_tokens=40, details=True)
        request = penstock.GenerateRequest(inputs=prompt, parameters=parameters)
        try:
            # What is not done after a minute is cancelled, on the server too.
            answer = service.Generate(request, timeout=60)
        except grpc.RpcError as error:
            print(f"{error.code().name}: {error.details()}", file=sys.stderr)
            return 1
    print(answer.generated_text)
    print(f"{answer.details.generated_tokens} tokens", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
