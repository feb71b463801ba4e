"""The quick check during training: held-out exact answers by teacher forcing.

It needs no generation: a greedy reply is exact if every argmax along the right reply is right. The
published scores come from evaluate.py.
"""

from collections import Counter

import heldout
import text
import torch
import torch.nn.functional as F
from model import Llama
from tokenizers import Tokenizer


@torch.no_grad()
def quick_check(model: Llama, tokenizer: Tokenizer, rounds: int = 1) -> str:
    """One line: the share of exact answers, whole and by kind. Not the questions of the exam."""
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    table = model.table()
    device = table.device
    for question in heldout.exam(seed=5, rounds=rounds):
        prompt, reply = _encode(tokenizer, question)
        ids = torch.tensor([prompt + reply], device=device)
        length = ids.shape[1]
        mask = torch.full((1, 1, length, length), float("-inf"), device=device).triu(1)
        hidden = model(ids, mask, table)[0, len(prompt) - 1 : -1]
        guesses = F.linear(hidden, table).argmax(-1)
        asked[question.kind] += 1
        right[question.kind] += int(guesses.tolist() == reply)
    kinds = " ".join(f"{kind} {right[kind]}/{asked[kind]}" for kind in asked)
    return f"{100 * right.total() / asked.total():.1f} % ({kinds})"


def _encode(tokenizer: Tokenizer, question: heldout.Question) -> tuple[list[int], list[int]]:
    roles = {"system": text.SYSTEM, "user": text.USER, "assistant": text.ASSISTANT}
    ids = [text.BOS]
    for message in question.messages:
        ids.append(roles[message["role"]])
        ids += tokenizer.encode(message["content"], add_special_tokens=False).ids
        ids += [text.EOS] * (message["role"] == "assistant")
    reply = tokenizer.encode(question.expected, add_special_tokens=False).ids
    return [*ids, text.ASSISTANT], [*reply, text.EOS]
