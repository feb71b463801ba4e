"""What README.md shows, run as it stands there against the bundled model; only the port differs."""

import json
import re
import subprocess
import sys

import httpx
import pytest
from harness.launcher import ROOT, Launcher

README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The launcher as a newcomer starts it: without a model id."""
    with Launcher(tmp_path_factory.mktemp("demo")) as launcher:
        launcher.wait_until_ready()
        yield launcher
        assert launcher.stop() == 0


def block(language: str, first_word: str, launcher: Launcher) -> str:
    """The first code block of a language that starts with a word, with the running server's address."""
    blocks = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    [found] = [text for text in blocks if text.startswith(first_word)]
    assert "http://127.0.0.1:3000" in found
    url = re.search(r"http://127\.0\.0\.1:\d+", launcher.log)
    assert url
    return found.replace("http://127.0.0.1:3000", url.group())


def run(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def test_the_demo_says_that_it_is_one(demo):
    assert "no --model-id: serving the bundled demo model" in demo.log
    url = re.search(r"Connected: demo is served on (\S+)", demo.log)
    assert url
    assert httpx.get(f"{url.group(1)}/info", timeout=30).json()["model_id"] == "demo"


def test_the_curl_streams_a_story(demo):
    printed = run(["bash", "-c", block("sh", "curl -N", demo).replace("curl -N", "curl --silent --show-error -N")])
    events = [line for line in printed.splitlines() if line]
    assert len(events) > 20
    assert all(line.startswith("data:") for line in events)
    last = json.loads(events[-1].removeprefix("data:"))
    assert last["generated_text"].endswith((".", "!", "?", '"'))


def test_the_chat_example_streams_a_story(demo):
    printed = run([sys.executable, "-c", block("python", "from openai", demo)])
    assert "fox" in printed
    assert printed.strip().endswith((".", "!", "?", '"'))
