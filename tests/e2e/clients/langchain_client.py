"""langchain's two ways here: as OpenAI's chat model and as a Hugging Face endpoint."""

import json
import sys

from langchain_huggingface import HuggingFaceEndpoint
from langchain_openai import ChatOpenAI

url = sys.argv[1]
chat = ChatOpenAI(base_url=f"{url}/v1", api_key="sk-anything", model="tgi", temperature=0, max_tokens=6)
endpoint = HuggingFaceEndpoint(endpoint_url=url, max_new_tokens=6, do_sample=False)
invoked = chat.invoke("hello")
answer = {
    "chat": invoked.content,
    "chat_streamed": "".join(chunk.content for chunk in chat.stream("hello")),
    "completion_tokens": invoked.usage_metadata["output_tokens"],
    "text": endpoint.invoke("hello"),
    "text_streamed": "".join(endpoint.stream("hello")),
}
print(json.dumps(answer))
