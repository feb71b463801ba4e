"""Model folders for benchmarks, made once in the user's cache: a 135M-shaped random Llama and a copy of the demo model,
both without an end token, so that every answer has the length that was asked for."""

import json
import os
import shutil
import sysconfig
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "penstock-bench"
DEMO = Path(__file__).parent.parent / "server" / "penstock_server" / "demo_model"
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
NO_END = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}


def demo() -> Path:
    """The bundled model, answering until it is stopped."""
    folder = CACHE / "demo"
    shutil.copytree(DEMO, folder, dirs_exist_ok=True)
    for name in ("config.json", "generation_config.json"):
        values = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(values | NO_END))
    # The peer takes the end token from here, too.
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token": None}))
    return folder


def long_demo() -> Path:
    """The same with room for long answers, for a router whose shard is a fake: the weights know no such positions."""
    folder = CACHE / "demo-long"
    shutil.copytree(demo(), folder, dirs_exist_ok=True)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_position_embeddings": 16384}))
    return folder


def random_135m() -> Path:
    """576 hidden, 30 layers, 9/3 heads, ff 1536, vocabulary 49,152, tied, bf16 on disk; weights are random."""
    folder = CACHE / "135m"
    if (folder / "done").exists():
        return folder
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=576,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        intermediate_size=1536,
        vocab_size=49152,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        **NO_END,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps(NO_END))
    _save_tokenizer(folder)
    (folder / "done").touch()
    return folder


def _save_tokenizer(folder: Path) -> None:
    """A byte-level BPE of 49,152 entries, trained on the standard library's source: text that every machine has."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    sources = Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")
    texts = (path.read_text(errors="ignore") for path in sorted(sources) if "site-packages" not in path.parts)
    trainer = trainers.BpeTrainer(
        vocab_size=49152,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|pad|>", "<|system|>", "<|user|>", "<|assistant|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|pad|>")
    wrapped.chat_template = TEMPLATE
    wrapped.save_pretrained(folder)
