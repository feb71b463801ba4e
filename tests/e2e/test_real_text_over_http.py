"""A real vocabulary behind the HTTP routes: which tokens a prompt has, and that streamed text is the decoded text."""

import json

import httpx
import pytest
from harness import vocabularies
from harness.client import TIMEOUT_S, body, events
from harness.models import integer_model
from transformers import AutoTokenizer

# The integer model says any id of the vocabulary: parts of characters and special tokens among them.
NUM_TOKENS = 400
TEXTS = ["", "Hello world", "  e\u0301 ½ 🦊\n\n", "a<|eot_id|>b <|begin_of_text|>", "日本語\tkod(x);\0"]
CHAT = [{"role": "system", "content": "Be brief. "}, {"role": "user", "content": "Hi 🦊\n"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The integer model with another model's tokenizer, one that puts a token before each text."""
    folder = integer_model(tmp_path_factory.mktemp("models") / "integer", eos=None)
    real = vocabularies.model_folder("llama3_1", tmp_path_factory.mktemp("vocabulary") / "llama3_1")
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    for file in vocabularies.FILES:
        (folder / file).write_bytes((real / file).read_bytes())
    config = json.loads((folder / "config.json").read_text())
    size = {"vocab_size": len(AutoTokenizer.from_pretrained(real))}
    (folder / "config.json").write_text(json.dumps(config | size))
    return folder


def test_prompts_and_answers_are_those_of_transformers(launch, folder):
    reference = AutoTokenizer.from_pretrained(folder)
    url = launch("--model-id", folder).wait_until_ready()
    with httpx.Client(base_url=url, timeout=TIMEOUT_S) as client:
        for text in TEXTS:
            tokens = client.post("/tokenize", json={"inputs": text}).json()
            assert [token["id"] for token in tokens] == reference(text)["input_ids"], text
            assert tokens[0] == {"id": reference.bos_token_id, "text": "", "start": 0, "stop": 0}
            for token in tokens:
                assert token["text"] == text.encode()[token["start"] : token["stop"]].decode(errors="ignore"), token
            # `/generate` adds what the tokenizer adds.
            reply = client.post("/generate", json=body(text, 1)) if text else None
            assert reply is None or reply.headers["x-prompt-tokens"] == str(len(tokens))

        # A chat has what its template wrote, and nothing more.
        prompt = reference.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
        ids = reference(prompt, add_special_tokens=False)["input_ids"]
        assert ids.count(reference.bos_token_id) == 1
        shown = client.post("/chat_tokenize", json={"messages": CHAT}).json()
        assert shown["templated_text"] == prompt
        assert [token["id"] for token in shown["tokenize_response"]] == ids
        chat = client.post("/v1/chat/completions", json={"messages": CHAT, "max_tokens": 1}).json()
        assert chat["usage"]["prompt_tokens"] == len(ids)

        request = body("Once", NUM_TOKENS, ignore_eos=True)
        streamed = [event["token"] for event in events(url, request)]
        whole = client.post("/generate", json=request).json()
    ids = [token["id"] for token in streamed]
    assert ids == [token["id"] for token in whole["details"]["tokens"]]
    assert len(ids) == NUM_TOKENS
    decoded = reference.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert "\ufffd" in decoded
    assert whole["generated_text"] == decoded
    assert "".join(token["text"] for token in streamed if not token["special"]) == decoded
