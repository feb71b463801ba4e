"""text-generation 0.7.0, the client that TGI shipped."""

import json
import sys

from text_generation import Client
from text_generation.errors import ValidationError

client = Client(sys.argv[1], timeout=60)
whole = client.generate("hello", max_new_tokens=6)
events = list(client.generate_stream("hello", max_new_tokens=6))
refused = []
for stream in (False, True):
    try:
        list(client.generate_stream("hello", max_new_tokens=0)) if stream else client.generate("x", max_new_tokens=0)
    except ValidationError as error:
        refused.append(str(error))
answer = {
    "ids": [token.id for token in whole.details.tokens],
    "text": whole.generated_text,
    "streamed": [event.token.id for event in events],
    "final": events[-1].generated_text,
    "reason": whole.details.finish_reason,
    "refused": refused,
}
print(json.dumps(answer))
