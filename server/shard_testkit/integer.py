"""The integer model as a pure function of the tokens, one token at a time (see `penstock_server/models/integer.py`)."""

import json
from dataclasses import dataclass
from pathlib import Path

PRIME = 2**31 - 1


@dataclass(frozen=True, slots=True)
class IntegerReference:
    """The model's shape. `nan_token` makes every later token of its sequence unusable."""

    vocab_size: int = 512
    num_layers: int = 2
    num_kv_heads: int = 4

    @property
    def nan_token(self) -> int:
        return self.vocab_size - 1

    def next_token(self, tokens: list[int]) -> int | None:
        """What the model chooses after `tokens`; None after a NaN."""
        if self.nan_token in tokens:
            return None
        total = 0
        for index in range(self.num_layers * self.num_kv_heads):
            base, weight = 1_000_003 + 7_919 * index, 1
            for position, token in enumerate(tokens):
                weight = weight * base % PRIME
                total += (token * 48_271 + position * 69_621 + 12_345) % PRIME * weight % PRIME
        return total % PRIME % (self.vocab_size - 1)

    def generate(self, prompt: list[int], count: int) -> list[int]:
        """The first `count` tokens after `prompt`, fewer where it holds a NaN token."""
        num_heads = self.num_layers * self.num_kv_heads
        bases = [1_000_003 + 7_919 * index for index in range(num_heads)]
        powers, total, answer = [1] * num_heads, 0, []
        if self.nan_token in prompt:
            return []
        for position in range(len(prompt) + count - 1):
            token = prompt[position] if position < len(prompt) else answer[-1]
            powers = [power * base % PRIME for power, base in zip(powers, bases, strict=True)]
            mixed = (token * 48_271 + position * 69_621 + 12_345) % PRIME
            total = (total + mixed * (sum(powers) % PRIME)) % PRIME
            if position >= len(prompt) - 1:
                answer.append(total % (self.vocab_size - 1))
        return answer

    def write_config(self, folder: Path, max_positions: int = 2048) -> Path:
        """A model folder that the shard can load."""
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "architectures": ["PenstockIntegerForCausalLM"],
            "model_type": "penstock_integer",
            "vocab_size": self.vocab_size,
            "head_dim": 1,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_kv_heads,
            "num_key_value_heads": self.num_kv_heads,
            "max_position_embeddings": max_positions,
        }
        (folder / "config.json").write_text(json.dumps(config))
        return folder
