"""On a GPU a token has the same bits alone and in a batch, for every operation between the products."""

import pytest
import torch

from penstock_kernels.embedding import embedding
from penstock_kernels.rms_norm import add_rms_norm, rms_norm
from penstock_kernels.rotary import rotation
from penstock_kernels.rotary_kv_store import rotary_kv_store
from penstock_kernels.silu_mul import silu_mul

pytestmark = pytest.mark.gpu

TOKENS = 300
PARTS = ((0, 1), (1, 2), (299, 300), (3, 20), (0, 131))


@pytest.fixture(params=[33, 576, 4096])
def rows(request, cuda):
    """[T, C], the same at every run."""
    dtype = torch.float32 if request.param == 33 else torch.bfloat16
    return torch.randn(TOKENS, request.param, generator=torch.Generator().manual_seed(1)).to(cuda, dtype)


def check_parts(whole, work):
    """`work(slice)` gives the same as that slice of `whole`."""
    for start, end in PARTS:
        assert torch.equal(work(slice(start, end)), whole[start:end])


def test_rms_norm(rows):
    weight = torch.rand_like(rows[0])
    check_parts(rms_norm(rows, weight, 1e-5), lambda part: rms_norm(rows[part], weight, 1e-5))
    residual = rows.flip(0)
    whole = add_rms_norm(rows, residual.clone(), weight, 1e-5)
    check_parts(whole, lambda part: add_rms_norm(rows[part], residual[part].clone(), weight, 1e-5))


def test_silu_mul(rows):
    gate_up = torch.cat((rows, rows.flip(0)), dim=1)
    check_parts(silu_mul(gate_up), lambda part: silu_mul(gate_up[part]))


def test_embedding(rows):
    ids = torch.randperm(TOKENS, device=rows.device)
    whole = embedding(ids, rows, 5, torch.float32)
    check_parts(whole, lambda part: embedding(ids[part], rows, 5, torch.float32))


def test_rotary_kv_store(rows):
    qkv = rows[:, :-1].reshape(TOKENS, -1, 32) if rows.shape[1] == 33 else rows.view(TOKENS, -1, 64)
    if (num_all_heads := qkv.shape[1]) < 3:
        qkv, num_all_heads = qkv.repeat(1, 3, 1), 3 * num_all_heads
    angles = torch.rand(TOKENS, qkv.shape[2] // 2, device=rows.device) * 100
    cosine, signed_sine = rotation(angles, rows.dtype)
    slots = torch.randperm(TOKENS, device=rows.device)
    shape = (TOKENS, 1, 1, qkv.shape[2])

    def turn(part):
        caches = torch.zeros(shape, dtype=rows.dtype, device=rows.device), torch.zeros_like(qkv[:, :1, None])
        query = rotary_kv_store(qkv[part], (cosine[part], signed_sine[part]), caches, slots[part])
        stored = [cache.flatten(0, 1)[slots[part]] for cache in caches]
        return torch.cat((query, *stored), dim=1)

    whole = turn(slice(0, TOKENS))
    assert whole.shape[1] == num_all_heads
    check_parts(whole, turn)
