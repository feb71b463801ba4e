"""Two answers at once over one connection: `python examples/grpc/stream_async.py 127.0.0.1:3000 "Once" "There was"`."""

import asyncio
import sys

import grpc.aio

import penstock_server.pb.penstock.v1 as penstock


async def answer(service: penstock.GenerationStub, prompt: str) -> str:
    parameters = penstock.Parameters(max_new_tokens=20)
    text = ""
    async for message in service.GenerateStream(penstock.GenerateRequest(inputs=prompt, parameters=parameters)):
        text = message.generated_text or text + message.token.text
    return text


async def main(address: str, prompts: list[str]) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        service = penstock.GenerationStub(channel)
        for text in await asyncio.gather(*(answer(service, prompt) for prompt in prompts)):
            print(text)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2:]))
