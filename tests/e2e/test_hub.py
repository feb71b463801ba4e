"""Models by name, from a server that plays the hub: fetched, served, and refused with what to do."""

import json
from pathlib import Path

import httpx
import pytest
from harness.client import body, generate
from harness.hub import COMMIT, FakeHub, Repository
from harness.launcher import Launcher, command_line, eventually
from harness.models import awkward_llama, tiny_llama

SECRET = "hf_a_secret_token"


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("hub") / "llama")


def variables(hub: FakeHub, home: Path, **others: str) -> dict[str, str]:
    return {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), **others}


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in found}


def test_a_model_is_fetched_once_and_served_by_its_name(tmp_path):
    folder, home = tmp_path / "model", tmp_path / "home"
    awkward_llama(folder, "tied")
    names = {path.name for path in folder.iterdir()}
    assert "model.safetensors.index.json" in names
    others = {"pytorch_model.bin": b"x", "consolidated.safetensors": b"x", "README.md": b"x", "modeling.py": b"x"}
    repository = Repository.of_folder(folder, token=SECRET)
    repository.files |= others
    with FakeHub({"org/pet": repository}) as hub:
        environment_of_hub = variables(hub, home, HF_TOKEN=SECRET, HF_HUB_OFFLINE="", HF_HUB_CACHE="")
        with Launcher(tmp_path, "--model-id", "org/pet", variables=environment_of_hub) as launcher:
            url = launcher.wait_until_ready()
            fetched = generate(url, body("Once", 8))
            info = httpx.get(f"{url}/info").json()
            assert (info["model_id"], info["model_sha"]) == ("org/pet", COMMIT)
            assert httpx.get(f"{url}/v1/models").json()["data"][0]["id"] == "org/pet"
            assert launcher.stop() == 0
        assert sorted(hub.downloads) == sorted(set(hub.downloads)), "a file was fetched twice"
        assert set(hub.downloads) == names
        assert {path for path, authorization in hub.requests if authorization != f"Bearer {SECRET}"} == set()
        assert SECRET not in launcher.log
    before = tree(home)
    offline = {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:1"}
    with Launcher(tmp_path, "--model-id", "org/pet", "--revision", "main", variables=offline) as launcher:
        assert generate(launcher.wait_until_ready(), body("Once", 8)) == fetched
        assert launcher.stop() == 0
    assert tree(home) == before
    with Launcher(tmp_path, "--model-id", str(folder)) as launcher:
        assert generate(launcher.wait_until_ready(), body("Once", 8)) == fetched


def test_the_port_tells_of_a_download_that_a_signal_ends(tmp_path, llama):
    repository = Repository.of_folder(llama, bytes_per_s=100_000)
    with FakeHub({"org/slow": repository}) as hub:
        environment_of_hub = variables(hub, tmp_path / "home", HF_TOKEN=SECRET)
        with Launcher(tmp_path, "--model-id", "org/slow", "--port", "0", variables=environment_of_hub) as launcher:
            launcher.wait_for_line("is at commit")
            [helper] = launcher.family()
            assert SECRET not in command_line(helper)
            url = f"http://127.0.0.1:{_port(launcher.process.pid)}"
            health = httpx.get(f"{url}/health")
            assert health.status_code == 503
            assert health.json()["phase"] == "download"
            assert 0 <= health.json()["fraction"] < 1
            answer = httpx.post(f"{url}/v1/chat/completions", json={})
            assert answer.status_code == 503
            assert answer.headers["retry-after"]
            assert "download" in answer.json()["error"]["message"]
            assert launcher.stop() == 0
            assert "stopped before the start" in launcher.log
            assert SECRET not in launcher.log
            eventually(lambda: not Path(f"/proc/{helper}").exists(), 5, "the download ended with the launcher")
    assert list(tmp_path.glob("penstock-run-*")) == []


def _port(pid: int) -> int:
    """The one that a process listens on."""
    sockets = {str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir() if path.is_symlink()}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
            return int(fields[1].split(":")[1], 16)
    raise AssertionError("it does not listen")


def test_an_older_tokenizer_is_converted_beside_the_model(tmp_path, llama):
    """GPT-2's files: byte letters as the vocabulary, and no merges."""
    folder, home = tmp_path / "model", tmp_path / "home"
    folder.mkdir()
    whole = json.loads((llama / "tokenizer.json").read_text())
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((llama / name).read_bytes())
    vocabulary = whole["model"]["vocab"] | {token["content"]: token["id"] for token in whole["added_tokens"]}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    special = {"tokenizer_class": "GPT2Tokenizer", "unk_token": "<|end|>", "bos_token": None, "eos_token": "<|end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(special))
    before = tree(folder)
    for turn in range(2):
        with Launcher(tmp_path, "--model-id", str(folder), variables={"HF_HOME": str(home)}) as launcher:
            url = launcher.wait_until_ready()
            tokens = httpx.post(f"{url}/tokenize", json={"inputs": "A z"}).json()
            assert "".join(token["text"] for token in tokens) == "A z"
            assert ("making a tokenizer.json from" in launcher.log) == (turn == 0)
    assert tree(folder) == before
    [made] = (home / "penstock" / "tokenizers").iterdir()
    assert made.suffix == ".json"
