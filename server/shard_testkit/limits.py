"""Small plan limits that tests share."""

from penstock_server.plan_checks import PlanLimits

LIMITS = PlanLimits(
    num_seats=16,
    num_penalty_lanes=4,
    num_blocks=64,
    blocks_per_seat=8,
    vocab_size=100,
    max_rows=8,
    max_tokens=32,
    max_seq_len=64,
    max_top_logprobs=5,
    decode_sizes=(1, 2, 4, 8),
    mixed_sizes=(8, 16, 32),
)
