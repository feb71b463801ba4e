"""huggingface_hub's InferenceClient, plain and streamed."""

import json
import sys

from huggingface_hub import InferenceClient

url = sys.argv[1]
client = InferenceClient(url, timeout=60)
whole = client.text_generation("hello", details=True, max_new_tokens=6)
events = list(client.text_generation("hello", details=True, stream=True, max_new_tokens=6))
messages = [{"role": "user", "content": "hello"}]
# Chat goes by the address of its route's root, as the client's own documentation has it.
chat_client = InferenceClient(base_url=f"{url}/v1", timeout=60)
chat = chat_client.chat_completion(messages, max_tokens=6, temperature=0)
chunks = list(chat_client.chat_completion(messages, max_tokens=6, temperature=0, stream=True))
answer = {
    "ids": [token.id for token in whole.details.tokens],
    "text": whole.generated_text,
    "plain": client.text_generation("hello", max_new_tokens=6, return_full_text=False),
    "streamed": [event.token.id for event in events],
    "final": events[-1].generated_text,
    "reason": events[-1].details.finish_reason,
    "chat": chat.choices[0].message.content,
    "chat_streamed": "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices),
    "completion_tokens": chat.usage.completion_tokens,
}
print(json.dumps(answer))
