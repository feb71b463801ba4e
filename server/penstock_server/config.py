"""The shard's whole configuration: one JSON object on standard input, written by the launcher. Read once, kept."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# How small tensors are added over the ranks: by NCCL or gloo, or over memory that all GPUs can read.
ALL_REDUCES = ("library", "symmetric")
# Weights are safetensors, by either of the first two names, or random.
LOAD_FORMATS = ("auto", "safetensors", "dummy")


@dataclass(frozen=True, slots=True)
class ShardConfig:
    """All fields are required on the wire; an unknown or missing key is an error."""

    model_path: Path
    rank: int
    num_ranks: int
    socket_path: Path  # this rank's unix socket
    rendezvous_path: Path  # file for torch.distributed's FileStore, the same for all ranks, fresh per start
    dtype: str  # "auto", "float32", "bfloat16", "float16"
    load_format: str  # one of `LOAD_FORMATS`
    device: str  # "auto", "cpu", "cuda"
    all_reduce: str  # one of `ALL_REDUCES`
    tokens_per_block: int
    num_blocks: int | None  # scratch block included; None: as many as the device's memory holds (CUDA)
    max_rows: int  # most rows of a plan
    max_step_tokens: int  # most tokens of a plan
    max_seq_len: int  # longest prompt + answer
    num_seats: int
    num_penalty_lanes: int
    step_depth: int  # plans in flight
    num_threads: int  # torch threads of this rank
    parent_pid: int  # exit when the parent is another
    log_level: str  # "debug", "info", "warning", "error"
    json_output: bool
    fill_kv_with_nan: bool  # test aid: the pool starts as NaN instead of zeros

    @classmethod
    def from_json(cls, text: str) -> "ShardConfig":
        """Parses the launcher's JSON. Raises ValueError that names the key."""
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError("the shard config is no JSON object")  # noqa: TRY004 - the user's mistake, not the caller's
        names = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(values.keys() - names):
            raise ValueError(f"unknown shard config keys: {', '.join(unknown)}")
        if missing := sorted(names - values.keys()):
            raise ValueError(f"missing shard config keys: {', '.join(missing)}")
        for field in dataclasses.fields(cls):
            expected: Any = str if field.type is Path else field.type
            value = values[field.name]
            # A bool is an int in Python, but not in a config.
            if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
                raise ValueError(f"shard config key {field.name} is {value!r}, which is none of {expected}")
            values[field.name] = Path(value) if field.type is Path else value
        return cls(**values)
