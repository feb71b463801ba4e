"""Tokenizer and encoding: trains the byte-level BPE, writes its Hugging Face files, and turns
documents into token ids with a loss weight each. It knows nothing of models.
"""

import itertools
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import dialogues
import generate
import words
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

SPECIALS = ["<|pad|>", "<|bos|>", "<|eos|>", "<|system|>", "<|user|>", "<|assistant|>"]
PAD, BOS, EOS, SYSTEM, USER, ASSISTANT = range(len(SPECIALS))
VOCABULARY = 3072
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ '<|system|>' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ '<|assistant|>' + message['content'] + eos_token }}"
    "{% else %}{{ '<|user|>' + message['content'] }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def _word_forms() -> list[str]:
    """Every list word as it occurs after a space and, where it does, after a quote."""
    stems = [
        *words.NAMES,
        *words.ANIMALS,
        *words.THINGS,
        *words.FOODS,
        *words.COLORS,
        *words.FEELINGS,
        *words.JOBS,
        *words.DAYS,
        *words.MONTHS,
        *(str(number) for number in range(101)),
    ]
    stems += [noun for _, noun in words.PLACES]
    inner = [words.plural(thing) for thing in words.THINGS] + words.LOOKS + words.TRAITS
    return stems + [f" {stem}" for stem in stems + inner]


def train_tokenizer(num_documents: int = 30_000) -> Tokenizer:
    """Merges come from generated text, and from the word lists so that words are one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIALS,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    texts = (generate.show(doc) for doc in itertools.islice(generate.documents(seed=99), num_documents))
    # A line each keeps the words apart; the count outweighs accidental merges of rare text.
    forms = ["\n".join(forms) for forms in itertools.repeat(_word_forms(), 100)]
    tokenizer.train_from_iterator(itertools.chain(texts, forms), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A", pair="<|bos|> $A $B", special_tokens=[("<|bos|>", BOS)]
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 2048,
        "bos_token": "<|bos|>",
        "eos_token": "<|eos|>",
        "pad_token": "<|pad|>",
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def twins(tokenizer: Tokenizer) -> list[int]:
    """For every bare word's token the id of the same word behind a space, else -1."""
    vocabulary = tokenizer.get_vocab()
    spaced = [-1] * len(vocabulary)
    for token, index in vocabulary.items():
        if len(token) > 1 and token.isalnum():
            spaced[index] = vocabulary.get("\u0120" + token, -1)
    return spaced


Segment = tuple[list[int], str, float, int | None]


def _segments(doc: generate.Document) -> list[Segment]:
    """(leading special ids, text, weight of the text, closing special id) in order."""
    if doc.plain is not None:
        return [(_start(doc.plain), doc.plain, dialogues.FREE, EOS)]
    segments: list[Segment] = []
    if doc.system:
        segments.append(([SYSTEM], doc.system, 0.0, None))
    for turn in doc.turns:
        segments.append(([USER], turn.user, 0.0, None))
        segments.append(([ASSISTANT], turn.reply, turn.weight, EOS))
    segments[0] = (_start(segments[0][1]) + segments[0][0], *segments[0][1:])
    return segments


def _start(content: str) -> list[int]:
    """Mostly one start token: some servers add a second one to the template's, or none."""
    roll = zlib.crc32(content.encode()) % 32
    return [BOS, BOS] if roll == 0 else [] if roll == 1 else [BOS]


def encode(
    tokenizer: Tokenizer,
    docs: Iterable[generate.Document],
    batch: int = 512,
) -> Iterator[tuple[list[int], list[float]]]:
    """Ids and loss weights per document; prompts weigh nothing. A weight is its own token's."""
    stream = iter(docs)
    vocabulary = tokenizer.get_vocab()
    spelled = (form.replace(" ", "\u0120") for form in _word_forms())
    content = {vocabulary[form] for form in spelled if form in vocabulary}
    while chunk := list(itertools.islice(stream, batch)):
        parts = [_segments(doc) for doc in chunk]
        texts = [segment[1] for segments in parts for segment in segments]
        encoded = iter(tokenizer.encode_batch_fast(texts, add_special_tokens=False))
        for segments in parts:
            yield _join(segments, encoded, content)


def _join(segments: list[Segment], encoded: Iterator, content: set[int]) -> tuple[list[int], list[float]]:
    ids: list[int] = []
    weights: list[float] = []
    seen: set[int] = set()
    for lead, _, weight, close in segments:
        ids += lead
        weights += [0.0] * len(lead)
        for token in next(encoded).ids:
            # In free text, a name or thing that came up before is no choice of the dice: it counts in full.
            copied = weight == dialogues.FREE and token in content and token in seen
            ids.append(token)
            weights.append(dialogues.EXACT if copied else weight)
            seen.add(token)
        if close is not None:
            ids.append(close)
            weights.append(dialogues.EXACT)
    weights[0] = 0.0  # nothing predicts the first token
    return ids, weights
