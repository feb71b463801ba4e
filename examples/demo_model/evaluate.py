"""Scores the exported demo model with transformers and writes docs/demo-model.md.

Measures greedy exact answers on the held-out exam, sampled replies that end, repeated 4-grams, and
loss on held-out text. It trains nothing, and reads only the exported files.
"""

import argparse
import itertools
import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import generate
import heldout
import page
import text
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer
from world import World

REPOSITORY = Path(__file__).parents[2]
MAX_NEW_TOKENS = 200
MAX_REPEATS = 3


@dataclass(frozen=True)
class Reply:
    """Decoded text without the end token, its ids, and whether it ended by itself."""

    text: str
    ids: list[int]
    ended: bool


class Demo:
    """The exported model behind one call."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def reply(self, messages: list[dict[str, str]], temperature: float = 0.0) -> Reply:
        prompt = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return self.complete(prompt, temperature, add_special_tokens=False)

    def answer(self, messages: list[dict[str, str]] | str) -> str:
        """The greedy reply to a chat, or the continuation of plain text."""
        return (self.complete if isinstance(messages, str) else self.reply)(messages).text.strip()

    @torch.no_grad()
    def complete(self, prompt: str, temperature: float = 0.0, add_special_tokens: bool = True) -> Reply:
        ids = self.tokenizer(prompt, add_special_tokens=add_special_tokens, return_tensors="pt").input_ids
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
        out = self.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=MAX_NEW_TOKENS, **sampling)[
            0, ids.shape[1] :
        ].tolist()
        ended = out[-1] == text.EOS
        return Reply(self.tokenizer.decode(out, skip_special_tokens=True), out, ended)


def most_repeated(reply: Reply) -> int:
    """How often the commonest 4-gram occurs, of tokens or of words, whichever is more."""
    counts = [0]
    for items in (reply.ids, reply.text.split()):
        grams = Counter(tuple(items[i : i + 4]) for i in range(len(items) - 3))
        counts += grams.values()
    return max(counts)


@torch.no_grad()
def heldout_loss(demo: Demo, tokenizer: Tokenizer, num_documents: int = 300) -> tuple[float, float]:
    """Mean loss per reply token on held-out text: over exact answers, and over all replies."""
    exact, every = [], []
    for ids, weights in text.encode(tokenizer, itertools.islice(_heldout_documents(), num_documents)):
        logits = demo.model(torch.tensor([ids])).logits[0, :-1]
        losses = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")
        kept = torch.tensor(weights[1:])
        exact += losses[kept == 1].tolist()
        every += losses[kept > 0].tolist()
    return sum(exact) / len(exact), sum(every) / len(every)


def _heldout_documents() -> itertools.chain:
    world = World(77, heldout=True)
    while True:
        try:
            yield generate.document(world)
        except LookupError:
            continue


def score(demo: Demo) -> tuple[dict[str, str], list[tuple[str, str, str]]]:
    """The table of scores, and the wrong answers as (kind, expected, got)."""
    right, asked, wrong = Counter(), Counter(), []
    greedy = []
    for question in heldout.exam():
        reply = demo.reply(question.messages)
        greedy.append(reply)
        asked[question.kind] += 1
        if reply.text == question.expected and reply.ended:
            right[question.kind] += 1
        else:
            wrong.append((question.kind, question.expected, reply.text))
    torch.manual_seed(0)
    sampled = [demo.reply(messages, temperature=0.8) for messages in heldout.prompts()]
    exact, every = heldout_loss(demo, Tokenizer.from_str(demo.tokenizer.backend_tokenizer.to_str()))
    kinds = ", ".join(f"{kind} {right[kind]}/{asked[kind]}" for kind in asked)
    ended = sum(reply.ended for reply in sampled)
    repeating = sum(most_repeated(reply) > MAX_REPEATS for reply in greedy + sampled)
    sampled_name = f"sampled replies (temperature 0.8) that end within {MAX_NEW_TOKENS} tokens"
    return {
        "greedy exact answers": f"{right.total()} of {asked.total()} ({kinds})",
        sampled_name: f"{ended} of {len(sampled)}",
        f"replies with a 4-gram more than {MAX_REPEATS} times": (f"{repeating} of {len(greedy + sampled)}"),
        "held-out loss per token, exact answers": f"{exact:.4f}",
        "held-out loss per token, all replies": f"{every:.4f}",
    }, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=REPOSITORY / "server/penstock_server/demo_model")
    parser.add_argument("--page", type=Path, default=REPOSITORY / "docs/demo-model.md")
    parser.add_argument("--fixtures", action="store_true", help="write tests/fixtures/demo_*.json, too")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.fixtures:
        heldout.write_fixtures(REPOSITORY / "tests/fixtures")
    demo = Demo(options.model)
    scores, wrong = score(demo)
    for name, value in scores.items():
        print(f"{name}: {value}")
    for kind, expected, got in wrong:
        print(f"wrong ({kind}): expected {expected!r}, got {got!r}")
    record = json.loads((options.model / "training.json").read_text())
    shape = json.loads((options.model / "config.json").read_text())
    options.page.parent.mkdir(parents=True, exist_ok=True)
    options.page.write_text(page.render(scores, page.sample_rows(demo.answer), record, shape))


if __name__ == "__main__":
    main()
