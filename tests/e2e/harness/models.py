"""Model folders made in a moment: the integer model with its exact answer, and tiny random Llamas."""

import json
from functools import cache
from pathlib import Path

import torch
import transformers
from model_testkit.tiny_llama import CASES, save
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

DEMO = Path(__file__).parents[3] / "server" / "penstock_server" / "demo_model"
PRIME = 2**31 - 1
NUM_LAYERS = 2
NUM_HEADS = 4
# 256 bytes, an end token, and the token that makes a row's logits NaN.
VOCAB_SIZE = 258
EOS = 256
NAN = VOCAB_SIZE - 1
POSITIONS = 4096


def integer_model(folder: Path, eos: int | None = EOS) -> Path:
    """A folder of the integer model: no weights, its tokens are bytes. Without `eos` every answer has full length."""
    folder.mkdir(parents=True)
    config = {
        "architectures": ["PenstockIntegerForCausalLM"],
        "model_type": "penstock_integer",
        "vocab_size": VOCAB_SIZE,
        "num_hidden_layers": NUM_LAYERS,
        "num_attention_heads": NUM_HEADS,
        "num_key_value_heads": NUM_HEADS,
        "head_dim": 1,
        "hidden_size": NUM_HEADS,
        "max_position_embeddings": POSITIONS,
        "eos_token_id": eos,
    }
    (folder / "config.json").write_text(json.dumps(config))
    # Where the configs are silent the tokenizer's own end token counts.
    _save_tokenizer(folder, "<|end|>" if eos is not None else None)
    return folder


def tiny_llama(folder: Path) -> Path:
    """A folder of a random Llama with 8 query and 4 KV heads."""
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=EOS,
    )
    torch.manual_seed(0)
    with _quiet():
        LlamaForCausalLM(config).save_pretrained(folder)
    _save_tokenizer(folder, "<|end|>")
    return folder


def awkward_llama(folder: Path, case: str) -> LlamaForCausalLM:
    """A folder of a random Llama of an awkward shape, in several files; returns transformers' own model of it."""
    with _quiet():
        reference = save(folder, vocab_size=VOCAB_SIZE, **CASES[case])
    _save_tokenizer(folder, "<|end|>")
    return reference


class _quiet:
    """transformers draws a progress bar for a file of some kilobytes."""

    def __enter__(self) -> None:
        transformers.utils.logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        transformers.utils.logging.enable_progress_bar()


def _save_tokenizer(folder: Path, end: str | None) -> None:
    """Byte-level without merges: token `i` is byte `i` in the order of the byte alphabet."""
    vocabulary = {letter: index for index, letter in enumerate(byte_letters())}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>", "<|nan|>"])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end)
    wrapped.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    wrapped.save_pretrained(folder)


@cache
def byte_letters() -> list[str]:
    """The letter that stands for each byte in byte-level vocabularies."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: chr(byte) for byte in printable}
    others = (byte for byte in range(256) if byte not in letters)
    letters |= {byte: chr(256 + index) for index, byte in enumerate(others)}
    return [letters[byte] for byte in range(256)]


def integer_answer(text: str, num_tokens: int, eos: int | None = EOS) -> list[int]:
    """What the integer model says after `text`: at most `num_tokens`, up to and with the end token."""
    bases = [1_000_003 + 7_919 * index for index in range(NUM_LAYERS * NUM_HEADS)]
    powers = list(bases)
    total = 0
    answer: list[int] = []
    pending = list(text.encode())
    for position in range(len(pending) + num_tokens - 1):
        mixed = (pending[position] * 48_271 + position * 69_621 + 12_345) % PRIME
        total = (total + sum(mixed * power % PRIME for power in powers)) % PRIME
        powers = [power * base % PRIME for power, base in zip(powers, bases, strict=True)]
        if position == len(pending) - 1:
            answer.append(total % (VOCAB_SIZE - 1))
            pending.append(answer[-1])
            if answer[-1] == eos:
                break
    return answer
