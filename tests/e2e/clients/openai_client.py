"""The openai package: chat and completions, plain and streamed, the usage chunk, and its own errors."""

import json
import sys

import openai

client = openai.OpenAI(base_url=f"{sys.argv[1]}/v1", api_key="sk-anything", timeout=60, max_retries=0)
model = client.models.list().data[0].id
messages = [{"role": "user", "content": "hello"}]
greedy = {"model": model, "max_tokens": 6, "temperature": 0}
chat = client.chat.completions.create(messages=messages, **greedy)
usage = {"stream": True, "stream_options": {"include_usage": True}}
chunks = list(client.chat.completions.create(messages=messages, **greedy, **usage))
text = client.completions.create(prompt="hello", **greedy)
pieces = list(client.completions.create(prompt="hello", **greedy, **usage))
errors = {}
for name, arguments in {"model": {**greedy, "model": "gpt-4"}, "value": {**greedy, "temperature": -1}}.items():
    try:
        client.chat.completions.create(messages=messages, **arguments)
    except openai.APIStatusError as error:
        errors[name] = [type(error).__name__, error.code, error.param]
answer = {
    "chat": chat.choices[0].message.content,
    "chat_streamed": "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices),
    "chat_reasons": [chat.choices[0].finish_reason, chunks[-2].choices[0].finish_reason],
    "usages": [part.usage.completion_tokens for part in (chat, chunks[-1], text, pieces[-1])],
    "text": text.choices[0].text,
    "text_streamed": "".join(piece.choices[0].text for piece in pieces if piece.choices),
    "errors": errors,
}
print(json.dumps(answer))
