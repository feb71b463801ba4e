"""Models by name, from a server that plays the hub: fetched, served, and refused with what to do."""

import json
import subprocess
from pathlib import Path

import httpx
import pytest
from harness.client import body, generate
from harness.hub import COMMIT, FakeHub, Repository
from harness.launcher import LAUNCHER, Launcher, command_line, environment, eventually
from harness.models import awkward_llama, tiny_llama

FAILED, MODEL = 1, 3
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
        environment_of_hub = variables(hub, home, HF_TOKEN=SECRET)
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


def refuse(tmp: Path, hub: FakeHub, *flags: str, **others: str) -> tuple[int, str]:
    """Exit code and output of a launcher that must end by itself."""
    done = subprocess.run(
        [LAUNCHER, "--hostname", "127.0.0.1", "--port", "0", *flags],
        env=environment(tmp) | variables(hub, tmp / "home", **others),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stdout + done.stderr
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def hub(llama):
    whole = Repository.of_folder(llama)
    config = json.loads(whole.files["config.json"])
    escape = json.dumps({"weight_map": {"lm_head.weight": "../../../config.json"}}).encode()
    other = json.dumps({**config, "architectures": ["OtherForCausalLM"]}).encode()
    index = {"model.safetensors.index.json": escape}
    models = {
        "org/tiny": whole,
        "org/private": Repository(whole.files, token=SECRET),
        "org/gated": Repository({}, refusal=(403, "GatedRepo")),
        "org/forbidden": Repository({}, refusal=(403, None)),
        "org/down": Repository({}, refusal=(502, None)),
        "org/pickle": Repository(
            {name: whole.files[name] for name in ("config.json", "tokenizer.json")} | {"x.bin": b""}
        ),
        "org/escape": Repository(whole.files | index),
        "org/other": Repository(whole.files | {"config.json": other}),
        "org/empty": Repository({"README.md": b"x"}),
    }
    with FakeHub(models) as hub:
        yield hub


@pytest.mark.parametrize(
    ("model", "flags", "others", "code", "words"),
    [
        ("org/none", [], {}, MODEL, "nor a model of that name"),
        ("org/private", [], {}, MODEL, "if it is private, set HF_TOKEN"),
        ("org/private", [], {"HF_TOKEN": "hf_wrong"}, MODEL, "does not accept the token"),
        ("org/gated", [], {}, MODEL, "accept its terms at"),
        ("org/forbidden", [], {"HF_TOKEN": "hf_weak"}, MODEL, "forbids reading"),
        ("org/tiny", ["--revision", "nope"], {}, MODEL, "no revision 'nope'"),
        ("org/down", [], {}, FAILED, "answered with status 502"),
        ("org/tiny", [], {"HF_HUB_OFFLINE": "1"}, MODEL, "fetch it once without HF_HUB_OFFLINE"),
        ("org/tiny", [], {"HF_ENDPOINT": "http://127.0.0.1:1"}, FAILED, "cannot be reached"),
        ("org/pickle", [], {}, MODEL, "only safetensors are served"),
        ("org/escape", [], {}, MODEL, "has no ../../../config.json"),
        ("org/other", [], {}, MODEL, "OtherForCausalLM, which is not supported"),
        ("org/empty", [], {}, MODEL, "has no config.json"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_refusals(tmp_path, hub, model, flags, others, code, words):
    hub.downloads.clear()
    found, text = refuse(tmp_path, hub, "--model-id", model, *flags, **others)
    assert words in text
    assert found == code
    assert not [name for name in hub.downloads if name.endswith(".safetensors")]
    assert others.get("HF_TOKEN", SECRET) not in text


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


def test_without_any_tokenizer_the_files_are_named(tmp_path, llama):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "model").mkdir(exist_ok=True)
        (tmp_path / "model" / name).write_bytes((llama / name).read_bytes())
    done = subprocess.run(
        [LAUNCHER, "--port", "0", "--model-id", tmp_path / "model"],
        env=environment(tmp_path), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == MODEL
    assert "has no tokenizer.json, nor anything that one could be made of: tokenizer.model" in done.stdout
