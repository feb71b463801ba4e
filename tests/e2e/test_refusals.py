"""What cannot work is refused before any process starts: at once, with its kind of exit code, and with the remedy."""

import json
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest
from harness.launcher import LAUNCHER, environment

# The promise is 2 s; five times that, because the machine may be busy.
LIMIT_S = 10

FAILED, USAGE, MODEL = 1, 2, 3


def refuse(tmp: Path, *flags: str | Path) -> tuple[int, str]:
    """Exit code and output of a launcher that must end by itself."""
    begin = time.monotonic()
    done = subprocess.run(
        [LAUNCHER, "--hostname", "127.0.0.1", "--port", "0", *flags],
        env=environment(tmp),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert time.monotonic() - begin < LIMIT_S
    assert list(tmp.glob("penstock-run-*")) == []
    return done.returncode, done.stdout + done.stderr


def edited(folder: Path, target: Path, **changes: object) -> Path:
    """A copy of a model folder with other config values."""
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | changes))
    return target


def test_a_taken_port(tmp_path, integer_folder):
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = str(holder.getsockname()[1])
        code, text = refuse(tmp_path, "--model-id", integer_folder, "--port", port)
    assert code == FAILED
    assert f"port {port} on 127.0.0.1 is taken" in text


def test_folders_that_are_not_there(tmp_path):
    code, text = refuse(tmp_path, "--model-id", tmp_path / "nowhere")
    assert code == MODEL
    assert "there is no folder" in text


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is broken"),
        (lambda folder: (folder / "config.json").unlink(), "cannot read"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer.json"),
        (lambda folder: (folder / "tokenizer.json").write_text("x"), "tokenizer.json is broken"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no weights"),
        (lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"), "save_pretrained"),
        (lambda folder: _cut(folder / "model.safetensors"), "was a download cut off?"),
        (lambda folder: _index(folder, "missing.safetensors"), "missing.safetensors"),
        (lambda folder: _index(folder, "../model.safetensors"), "not a plain file name"),
    ],
    ids=["config", "no config", "no tokenizer", "tokenizer", "no weights", "pickle", "cut", "index", "escape"],
)
def test_broken_folders(tmp_path, llama_folder, damage, words):
    folder = tmp_path / "model"
    shutil.copytree(llama_folder, folder)
    damage(folder)
    code, text = refuse(tmp_path, "--model-id", folder)
    assert code == MODEL, text
    assert words in text


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _index(folder: Path, name: str) -> None:
    index = {"weight_map": {"model.norm.weight": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("tokenizer.json", "{}", "tokenizer.json: "),
        ("generation_config.json", '{"eos_token_id": "x"}', "eos_token_id should be a token id"),
    ],
    ids=["tokenizer", "end token"],
)
def test_what_only_the_router_can_tell(tmp_path, integer_folder, name, text, words):
    folder = tmp_path / "model"
    shutil.copytree(integer_folder, folder)
    (folder / name).write_text(text)
    code, text = refuse(tmp_path, "--model-id", folder)
    assert code == MODEL, text
    assert words in text


def test_what_the_shard_does_not_know(tmp_path, llama_folder):
    folder = edited(llama_folder, tmp_path / "a", architectures=["GPT2LMHeadModel"])
    code, text = refuse(tmp_path, "--model-id", folder)
    assert code == MODEL
    assert "GPT2LMHeadModel, which is not supported; supported are: Llama" in text
    folder = edited(llama_folder, tmp_path / "b", hidden_act="mish")
    code, text = refuse(tmp_path, "--model-id", folder)
    assert code == MODEL
    assert "mish, which is not supported; supported are: " in text
    folder = edited(llama_folder, tmp_path / "c", vocab_size=2**62)
    code, text = refuse(tmp_path, "--model-id", folder)
    assert code == MODEL
    assert "has no usable `vocab_size`" in text


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--num-shard", "3"], "possible are 1, 2, 4, 8"),
        (["--num-shard", "9"], "--num-shard"),
        (["--max-total-tokens", "100000"], "between 2 and the model's 512 positions"),
        (["--max-input-tokens", "9", "--max-total-tokens", "9"], "--max-input-tokens 9 must be below"),
        (["--max-batch-total-tokens", "8", "--max-total-tokens", "9"], "--max-batch-total-tokens 8"),
        (["--max-concurrent-requests", "many"], "--max-concurrent-requests"),
        (["--max-concurrent-requests", str(2**62)], "--max-concurrent-requests"),
        (["--max-batch-size", "0"], "--max-batch-size"),
        (["--max-batch-size", str(2**64 - 1)], "--max-batch-size"),
        (["--max-batch-prefill-tokens", str(2**64 - 1)], "--max-batch-prefill-tokens"),
        (["--max-batch-total-tokens", str(2**64 - 1)], "--max-batch-total-tokens"),
        (["-g", str(2**64 - 1)], "--graceful-termination-timeout"),
        (["--no-such-flag"], "--no-such-flag"),
        (["--log-level", "=="], "--log-level"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_flags_that_contradict(tmp_path, llama_folder, flags, words):
    code, text = refuse(tmp_path, "--model-id", llama_folder, *flags)
    assert code == USAGE, text
    assert words in text


def test_more_memory_than_there_is(tmp_path, llama_folder):
    code, text = refuse(tmp_path, "--model-id", llama_folder, "--max-batch-total-tokens", "4000000000")
    assert code == FAILED
    for part in (
        "weights 0.01 GiB",
        "KV cache",
        "1.00 GiB for 1 shard process",
        "available",
        "--max-batch-total-tokens to at most",
    ):
        assert part in text, f"{part} is not in: {text}"
