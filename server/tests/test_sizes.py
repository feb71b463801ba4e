"""Padded sizes and limits that follow from a config."""

import dataclasses
import itertools
from pathlib import Path

import pytest
from shard_testkit.process import DEFAULTS

from penstock_server.config import ShardConfig
from penstock_server.sizes import blocks_per_seat, check_config, decode_sizes, mixed_sizes, plan_limits

CONFIG = ShardConfig(**DEFAULTS, model_path=Path("m"), socket_path=Path("s"), rendezvous_path=Path("r"), parent_pid=1)


@pytest.mark.parametrize(
    ("max_rows", "sizes"),
    [
        (1, (1,)),
        (8, (1, 2, 4, 8)),
        (100, (1, 2, 4, 8, 16, 32, 64, 100)),
        (256, (1, 2, 4, 8, 16, 32, 64, 128, 256)),
        (1000, (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 768, 1000)),
    ],
)
def test_decode_sizes(max_rows, sizes):
    assert decode_sizes(max_rows) == sizes


@pytest.mark.parametrize("max_tokens", [1, 7, 8, 9, 64, 96, 100, 640, 2304, 4097, 9000])
def test_mixed_sizes_rise_to_the_limit_and_waste_little(max_tokens):
    sizes = mixed_sizes(max_tokens)
    assert sizes[-1] == max_tokens
    assert list(sizes) == sorted(set(sizes))
    assert len(sizes) <= 48
    for smaller, larger in itertools.pairwise(sizes):
        assert larger - smaller <= max(8, smaller)
        if smaller >= 16:
            assert larger - smaller <= smaller * 1.0
        if smaller >= 64:
            assert larger - smaller <= smaller / 2


@pytest.mark.parametrize(("seq_len", "width"), [(1, 1), (16, 1), (17, 2), (33, 4), (2048, 128), (2049, 256)])
def test_block_tables_are_a_power_of_two_wide(seq_len, width):
    assert blocks_per_seat(seq_len, 16) == width


def test_limits_are_those_of_the_config():
    limits = plan_limits(CONFIG, num_blocks=77, vocab_size=10)
    assert (limits.num_blocks, limits.vocab_size, limits.max_top_logprobs) == (77, 10, 10)
    assert (limits.max_rows, limits.max_tokens) == (limits.decode_sizes[-1], limits.mixed_sizes[-1]) == (32, 96)
    assert limits.blocks_per_seat == 32


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"num_ranks": 0}, "num_ranks 0 must be at least 1"),
        ({"tokens_per_block": -1}, "tokens_per_block -1 must be at least 1"),
        ({"step_depth": 0}, "step_depth 0 must be at least 1"),
        ({"num_threads": 0}, "num_threads 0 must be at least 1"),
        ({"rank": -1}, "rank -1 is not one of 1 ranks"),
        ({"max_seq_len": 1}, "max_seq_len 1 holds no prompt and answer"),
        ({"max_step_tokens": 31}, "max_step_tokens 31 is below max_rows 32"),
        ({"num_seats": 31}, "num_seats 31 is not between max_rows 32"),
        ({"num_seats": 1 << 24}, "num_seats 16777216 is not between"),
        ({"log_level": "loud"}, "log_level 'loud' is not one of debug, info, warning, error"),
        ({"all_reduce": "fast"}, "all_reduce 'fast' is not one of library, symmetric"),
        ({"load_format": "gguf"}, "load_format 'gguf' is not one of auto, safetensors, dummy"),
        ({"num_penalty_lanes": -1}, "num_penalty_lanes -1 is negative"),
        ({"num_blocks": 1}, "num_blocks 1 leaves no block"),
    ],
)
def test_a_config_that_cannot_work_is_refused(changes, text):
    check_config(CONFIG)
    with pytest.raises(ValueError, match=text):
        check_config(dataclasses.replace(CONFIG, **changes))
