"""Published clients, unmodified, against the real launcher. Each is a program of its own in `clients/`; those with
conflicting pins run in an environment of their own."""

import json
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from harness.launcher import ROOT, Launcher
from harness.models import DEMO

CLIENTS = Path(__file__).parent / "clients"
CLIENTS_PYTHON = ROOT / ".venv-clients" / "bin" / "python"
NUM_TOKENS = 6


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    with Launcher(tmp_path_factory.mktemp("clients"), "--model-id", str(DEMO)) as launcher:
        yield launcher.wait_until_ready()
        assert launcher.stop() == 0


@pytest.fixture(scope="module")
def expected(url):
    """What plain HTTP says to "hello": the text of a prompt, its ids, and the text of a chat."""
    parameters = {"max_new_tokens": NUM_TOKENS, "details": True}
    native = httpx.post(f"{url}/generate", json={"inputs": "hello", "parameters": parameters}, timeout=60).json()
    messages = [{"role": "user", "content": "hello"}]
    request = {"model": "tgi", "messages": messages, "max_tokens": NUM_TOKENS, "temperature": 0}
    chat = httpx.post(f"{url}/v1/chat/completions", json=request, timeout=60).json()
    return {
        "text": native["generated_text"],
        "ids": [token["id"] for token in native["details"]["tokens"]],
        "chat": chat["choices"][0]["message"]["content"],
    }


def run(program: str, url: str, python: Path | str = CLIENTS_PYTHON) -> dict[str, object]:
    assert CLIENTS_PYTHON.exists(), "make .venv-clients/stamp"
    done = subprocess.run([python, CLIENTS / program, url], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_text_generation(url, expected):
    got = run("text_generation_client.py", url)
    refused = got.pop("refused")
    assert got == {
        "ids": expected["ids"],
        "text": expected["text"],
        "streamed": expected["ids"],
        "final": expected["text"],
        "reason": "length",
    }
    assert len(refused) == 2
    assert all("max_new_tokens" in text for text in refused)


@pytest.mark.parametrize("python", [CLIENTS_PYTHON, sys.executable], ids=["0.x", "the product's"])
def test_inference_client(url, expected, python):
    """It posts to `/`, which answers with the prompt in front unless told otherwise, as TGI's does."""
    assert run("inference_client.py", url, python) == {
        "ids": expected["ids"],
        "text": "hello" + expected["text"],
        "plain": expected["text"],
        "streamed": expected["ids"],
        "final": "hello" + expected["text"],
        "reason": "length",
        "chat": expected["chat"],
        "chat_streamed": expected["chat"],
        "completion_tokens": NUM_TOKENS,
    }


def test_openai(url, expected):
    assert run("openai_client.py", url) == {
        "chat": expected["chat"],
        "chat_streamed": expected["chat"],
        "chat_reasons": ["length", "length"],
        "usages": [NUM_TOKENS] * 4,
        "text": expected["text"],
        "text_streamed": expected["text"],
        "errors": {
            "model": ["NotFoundError", "model_not_found", "model"],
            "value": ["BadRequestError", "invalid_value", "temperature"],
        },
    }


def test_langchain(url, expected):
    assert run("langchain_client.py", url) == {
        "chat": expected["chat"],
        "chat_streamed": expected["chat"],
        "completion_tokens": NUM_TOKENS,
        "text": expected["text"],
        "text_streamed": expected["text"],
    }
