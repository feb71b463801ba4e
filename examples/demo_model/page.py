"""docs/demo-model.md: which prompts it shows, and how it looks.

It asks the model through one function and measures nothing.
"""

from collections.abc import Callable

SAMPLES = [
    "Tell me a story about a fox and a lantern.",
    "Tell me a story about a dragon and a teapot.",
    "Write a short story about Mia.",
    "Mia found a red lantern in the barn. Where did Mia find the lantern?",
    "Tom the bear lives by the river. Nina lives in the tower. Where does Nina live?",
    "Omar has 8 kites and finds 5 more. How many kites does Omar have now?",
    "What is 7 plus 6?",
    "Which is bigger, 37 or 52?",
    "Count from 12 to 18.",
    "List three animals.",
    "Make a list of a kite, a drum and a bell.",
    "Write a JSON object with name Mia, animal fox and age 7.",
    "Write pear, plum and apple as a JSON list.",
    "What is the opposite of hot?",
    "What sound does a cow make?",
    "What day comes after Monday?",
    "Hello!",
    "What can you do?",
    "What is the capital of France?",
    "Explain quantum computing in simple terms.",
]
STYLED_SAMPLES = [
    ("Answer with one word.", "Ella hid a silver coin under the stairs. What did Ella hide?"),
    ("Begin every answer with Arr!", "Jack has 42 apples. How many apples does Jack have?"),
    ("You are Penny, a friendly assistant.", "What is your name?"),
]

TEMPLATE = """\
# The bundled model `demo`

A Llama of {parameters:.1f} M parameters ({num_hidden_layers} layers, hidden {hidden_size},
{num_attention_heads} query and {num_key_value_heads} KV heads, vocabulary {vocab_size}), trained
from nothing on text that `examples/demo_model/generate.py` makes. It tells short stories, answers
questions about them, adds small numbers, and writes lists and JSON. It knows nothing else of the
world beyond a few facts, and mostly says so; outside these subjects it can answer nonsense.

## Scores

Trained on {tokens:.1f} M tokens in {minutes:.0f} minutes on {machine}.
A tenth of all combinations (a name with a thing, a place, a number; a pair of numbers) never occurs
in training. The exam of 100 questions asks about those, but for some five on general knowledge. Bare
sums and comparisons are held out in one order: their mirror images may have been seen.

| measure | result |
|---|---|
{scores}

## Sample answers (greedy)

| prompt | reply |
|---|---|
{rows}

## Training it again

```
python examples/demo_model/train.py --million-tokens {tokens:.0f} --checkpoints DIR \\
    --out server/penstock_server/demo_model
python examples/demo_model/evaluate.py --fixtures
```

The first command resumes from DIR if it was interrupted. The second rewrites this page and the two
files of prompts in `tests/fixtures/`.
"""


def sample_rows(answer: Callable[[list[dict[str, str]] | str], str]) -> list[tuple[str, str]]:
    """(prompt, reply) of the published samples; greedy, so anybody gets the same."""
    rows = [(prompt, answer([{"role": "user", "content": prompt}])) for prompt in SAMPLES]
    for system, user in STYLED_SAMPLES:
        messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
        rows.append((f"[system: {system}] {user}", answer(messages)))
    start = "Once upon a time"
    return [*rows, (f"{start} (plain text, no chat template)", f"… {answer(start)}")]


def render(scores: dict[str, str], rows: list[tuple[str, str]], record: dict, shape: dict) -> str:
    """The page; `record` is training.json, `shape` is config.json."""
    numbers = {
        **record,
        "parameters": record["parameters"] / 1e6,
        "tokens": record["tokens"] / 1e6,
    }
    return TEMPLATE.format(**shape, **numbers, scores=_table(list(scores.items())), rows=_table(rows))


def _table(rows: list[tuple[str, str]]) -> str:
    return "\n".join(f"| {_cell(left)} | {_cell(right)} |" for left, right in rows)


def _cell(value: str) -> str:
    return value.replace("|", "\\|").replace("\n", "<br>")
