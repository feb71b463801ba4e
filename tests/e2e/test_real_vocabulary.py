"""Vocabularies as published models have them: the router's ids, texts and prompts are those of transformers."""

import json
import os
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest
from harness import vocabularies
from harness.launcher import ROOT
from harness.models import byte_letters
from transformers import AutoTokenizer

# The router's tokenizer, template and text worker in a program. `cargo test` builds it.
STREAM_TEXT = ROOT / os.environ.get("CARGO_TARGET_DIR", "target") / "release" / "examples" / "stream_text"
NUM_TEXTS = 200
NUM_SEQUENCES = 1000
NUM_TIMED = 2000
# As fast as text, to within a third; where the tokenizer's `decode` looks at tokens again it is three times as slow.
MAX_RATIO = 2
# A hang guard, many times what a run takes.
LIMIT_S = 300
# What a text is put together from: scripts, code, numbers, white space, names of special tokens.
WORDS = """
The quick brown fox doesn't jump over 12345 lazy dogs; it's 3.14159 o'clock, 1e-7 and 0xFF. </p> {{ </think>
Съешь же ещё этих мягких французских булок 我能吞下玻璃而不伤身体。 いろはにほへと 색은 냄새로 नमस्ते दुनिया
صِف خَلقَ خَودٍ สวัสดีชาวโลก Ελληνικά עברית 🦊 👩\u200d👩\u200d👧 🇩🇪 ½ \ufb01 e\u0301 \u200b \x7f ÿ \ufffc
"""
PIECES = WORDS.split()
PIECES += ["def f(x):\n    return x**2\n", "\t\t", "\r\n", "    ", "\n\n\n", "\u00a0", "\u2028"]
PIECES += ["\0", "\x1b[0m", "\x07", "\x85", " \n \n", " " * 40, "\t" * 9]
# Almost the names of special tokens.
PIECES += ["<|im_start|", "< |eot_id|>", "<|IM_END|>", "|>", "<|", "<s>", "[INST]"]

CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": [2.5, None, "ü<>&'\""]}}}
CHATS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": ' Hello, <b>world</b> & it\'s "fine" \n'}],
    [{"role": "system", "content": "Be brief.\n"}, {"role": "user", "content": "Привет 🦊"}],
    [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nb"},
        {"role": "user", "content": ""},
    ],
    [
        {"role": "user", "content": "1 + 2?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL, CALL]},
        {"role": "tool", "content": '{"sum": 3}'},
        {"role": "tool", "content": "4"},
        {"role": "assistant", "content": "3", "reasoning_content": "\nIt said 3.\n"},
        {"role": "user", "content": "<tool_response>x</tool_response>"},
        {"role": "user", "content": "Sure?"},
    ],
    # The last one is to be continued.
    [{"role": "user", "content": "Count."}, {"role": "assistant", "content": "One, two"}],
]


@pytest.fixture(scope="module", params=vocabularies.NAMES)
def folder(request, tmp_path_factory) -> Path:
    return vocabularies.model_folder(request.param, tmp_path_factory.mktemp("vocabulary") / request.param)


@pytest.fixture(scope="module")
def reference(folder):
    return AutoTokenizer.from_pretrained(folder)


def answers(folder: Path, tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the router makes of each."""
    assert STREAM_TEXT.exists(), f"{STREAM_TEXT} is not there: cargo build --release --examples"
    lines = "".join(json.dumps(task) + "\n" for task in tasks)
    done = subprocess.run(
        [STREAM_TEXT, folder], input=lines, capture_output=True, encoding="utf-8", timeout=LIMIT_S, check=False
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.split("\n") if line]


def written_rule(reference, ids: list[int]) -> str:
    """docs/http.md: the bytes of all tokens but special ones, each maximal invalid sequence replaced."""
    byte = {letter: index for index, letter in enumerate(byte_letters())}
    added = reference.added_tokens_decoder
    text = b""
    for id in ids:
        if id in added:
            text += b"" if added[id].special else added[id].content.encode()
        elif token := reference.convert_ids_to_tokens(id):
            text += bytes(byte[letter] for letter in token)
    return text.decode("utf-8", errors="replace")


def test_texts_have_the_ids_of_transformers(folder, reference):
    assert len(reference) > 128_000
    rng = random.Random(1)
    pieces = PIECES + rng.sample(sorted(reference.get_added_vocab()), 12)
    texts = [
        "".join(rng.choice(pieces) + rng.choice(["", " ", "  "]) for _ in range(rng.randint(1, 60)))
        for _ in range(NUM_TEXTS)
    ]
    got = answers(folder, [{"text": text} for text in texts])
    for text, answer in zip(texts, got, strict=True):
        assert answer["ids"] == reference(text)["input_ids"], text


def test_ids_have_the_text_of_transformers_however_they_come(folder, reference):
    rng = random.Random(2)
    # Also ids past the vocabulary, for which a model may have rows.
    sequences = [[rng.randrange(len(reference) + 200) for _ in range(rng.randint(1, 40))] for _ in range(NUM_SEQUENCES)]
    # Tokens that are parts of characters, which a stream has to hold back.
    texts = reference.batch_decode([[id] for id in range(len(reference))])
    parts = [id for id, text in enumerate(texts) if "\ufffd" in text]
    assert len(parts) > 100
    for sequence in sequences[: NUM_SEQUENCES // 2]:
        for _ in range(len(sequence) // 2):
            sequence[rng.randrange(len(sequence))] = rng.choice(parts)
    got = answers(folder, [{"ids": ids, "seed": seed} for seed, ids in enumerate(sequences)])
    for ids, answer in zip(sequences, got, strict=True):
        expected = reference.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert answer["texts"] == [expected] * 3, ids
        assert written_rule(reference, ids) == expected, ids


def test_invalid_bytes_cost_no_more_than_text(folder, reference):
    """The fastest of many runs of each, in one process: nothing here depends on how fast the machine is."""
    letters = byte_letters()
    # Never valid; a continuation without a beginning; beginnings without an end, twice.
    invalid = [b"\xff", b"\x80", b"\xe2", b"\xf0\x9f"]
    tokens = [[letters[byte] for byte in pattern] for pattern in [b"a", *invalid]]
    ids = [reference.convert_tokens_to_ids(pattern) for pattern in tokens]
    runs = [pattern * (NUM_TIMED // len(pattern)) for pattern in ids]
    valid, *others = (answer["ns"] for answer in answers(folder, [{"timed": run} for run in runs]))
    for pattern, ns in zip(invalid, others, strict=True):
        assert ns <= MAX_RATIO * valid, f"{pattern!r}: {ns} ns, where text takes {valid} ns"


# The Python package has no template.
@pytest.mark.parametrize("folder", list(vocabularies.NPM), indirect=True)
def test_chats_have_the_prompt_of_transformers(folder, reference):
    got = answers(folder, [{"messages": chat} for chat in CHATS])
    for chat, answer in zip(CHATS, got, strict=True):
        continued = chat[-1]["role"] == "assistant"
        expected = reference.apply_chat_template(
            chat, tokenize=False, add_generation_prompt=not continued, continue_final_message=continued
        )
        assert answer["prompt"] == expected, chat
