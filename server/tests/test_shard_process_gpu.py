"""The real shard process on a GPU, driven over gRPC."""

import pytest
import torch
from model_testkit.parity import Output, check_parity
from model_testkit.tiny_llama import save
from shard_testkit.generation import generate
from shard_testkit.integer import IntegerReference
from shard_testkit.process import DEFAULTS, ShardGroup
from shard_testkit.scheduler import TestScheduler, World, check_answers, make_requests

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("cuda")]

REFERENCE = IntegerReference()


def test_the_integer_model_is_exact(tmp_path):
    path = REFERENCE.write_config(tmp_path)
    requests = make_requests(REFERENCE, 60, seed=1)
    world = World(
        num_seats=DEFAULTS["num_seats"],
        num_blocks=DEFAULTS["num_blocks"],
        tokens_per_block=DEFAULTS["tokens_per_block"],
        max_rows=DEFAULTS["max_rows"],
        max_tokens=DEFAULTS["max_step_tokens"],
        depth=2,
        chunk=23,
        preempt_share=0.1,
    )
    with ShardGroup(path, device="cuda") as group:
        assert group.ranks[0].info().device_type == "cuda"
        group.open()
        TestScheduler(world, REFERENCE, group.submit, group.receive, seed=1).run(requests)
        group.half_close()
    check_answers(REFERENCE, requests)


def test_a_llama_passes_parity_with_a_measured_pool(tmp_path):
    """The number of blocks is left to the shard, as the launcher leaves it."""
    reference = save(tmp_path)
    generator = torch.Generator().manual_seed(3)
    prompts = [torch.randint(0, 131, (length,), generator=generator).tolist() for length in (2, 16, 37)]
    with ShardGroup(tmp_path, device="cuda", dtype="float32", tokens_per_block=16, num_blocks=None) as group:
        group.open()
        answers = generate(group, prompts, 30, 16)
        group.half_close()
    check_parity(reference, [Output(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)])


@pytest.mark.parametrize("all_reduce", ["library", "symmetric"])
def test_several_gpus_answer_as_transformers(all_reduce, tmp_path):
    """All steps are captured, with the sums over ranks inside."""
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU has nobody to add up with")
    reference = save(tmp_path)
    generator = torch.Generator().manual_seed(4)
    prompts = [torch.randint(0, 131, (length,), generator=generator).tolist() for length in (2, 16, 37, 60)]
    with ShardGroup(tmp_path, num_ranks=2, device="cuda", dtype="float32", all_reduce=all_reduce) as group:
        group.open()
        answers = generate(group, prompts, 30, DEFAULTS["tokens_per_block"])
        group.half_close()
    check_parity(reference, [Output(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)])
