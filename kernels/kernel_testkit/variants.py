"""The kernels as real models launch them on a Hopper: every compile-time argument, without a GPU at hand."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import triton

from kernel_testkit.hopper import SHARED_BYTES, Budget, Compiled, compile_kernel
from penstock_kernels import (
    all_reduce_triton,
    attention_config,
    embedding_triton,
    linear_triton,
    prepare_step_triton,
    rms_norm_triton,
    rotary_kv_store_triton,
    sample_step,
    sample_step_kernels,
    sample_step_triton,
    silu_mul_triton,
)
from penstock_kernels.all_reduce import GROUP
from penstock_kernels.attention_config import Device
from penstock_kernels.attention_decode_kernel import decode_kernel
from penstock_kernels.attention_plan_kernel import plan_kernel
from penstock_kernels.attention_prompt_kernel import prompt_kernel
from penstock_kernels.attention_triton import HeadShape
from penstock_kernels.sample_cut_kernel import cut_kernel

HOPPER = Device(capability=9, num_sms=132)
TOKENS_PER_BLOCK = 16
_TYPES = {
    **dict.fromkeys(("query", "k_cache", "v_cache", "out"), "*bf16"),
    **dict.fromkeys(("part_out", "part_stats"), "*fp32"),
    **dict.fromkeys(("block_table", "seq_lens", "query_starts", "decode_rows"), "*i32"),
    **dict.fromkeys(("decode_items", "prompt_items", "totals", "counters"), "*i32"),
    **dict.fromkeys(("multiplier", "inner"), "fp32"),
}
_SAMPLE_TYPES = {
    **dict.fromkeys(
        ("logits_ptr", "floats_ptr", "scores_ptr", "scratch_ptr", "chosen_ptr", "top_logprobs_ptr"), "*fp32"
    ),
    **dict.fromkeys(("edit_values_ptr", "min_length_values_ptr", "best_ptr", "raw_best_ptr", "raw_sum_ptr"), "*fp32"),
    **dict.fromkeys(("seats_ptr", "positions_ptr", "alias_ptr", "last_token_ptr", "ints_ptr", "ids_ptr"), "*i64"),
    **dict.fromkeys(("edit_ids_ptr", "min_length_ids_ptr", "weights_ptr", "top_ptr", "top_ids_ptr"), "*i64"),
    **dict.fromkeys(("masks_ptr", "history_ptr", "best_id_ptr", "ties_ptr"), "*i32"),
    "cuts_ptr": "*fp32",
    "bad_ptr": "*u8",
}
# What allocators and models make is aligned to 16 bytes; views of a step's columns may not be.
_ALIGNED = {"query", "k_cache", "v_cache", "out", "part_out", "part_stats", "query_stride"}


@dataclass(frozen=True)
class ModelShape:
    """What one rank holds of a model."""

    name: str
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    feed_forward: int | None  # None: experts, for which there is no kernel yet
    vocabulary: int
    window: int = 0  # with one, its logits are capped as well
    head_norm: bool = False  # of queries and keys
    ranks: int = 1

    @property
    def linears(self) -> list[tuple[int, int]]:
        """[O, I] of its dense weights, that of gates and ups excepted."""
        width = self.heads * self.head_dim
        shapes = [((self.heads + 2 * self.kv_heads) * self.head_dim, self.hidden), (self.hidden, width)]
        if self.feed_forward:
            shapes.append((self.hidden, self.feed_forward))
        return [*shapes, (self.vocabulary, self.hidden)]


MODELS = (
    ModelShape("Llama-3.1-8B", 4096, 32, 8, 128, 14336, 128256),
    ModelShape("Qwen3-8B", 4096, 32, 8, 128, 12288, 151936, head_norm=True),
    ModelShape("Qwen3-30B-A3B", 2048, 32, 4, 128, None, 151936, head_norm=True),
    ModelShape("Llama-3.1-70B over 4 GPUs", 8192, 16, 2, 128, 7168, 32064, ranks=4),
)
# Awkward ones: heads that are no power of two, a window with capped logits, one KV head for all.
OTHERS = (
    ModelShape("Qwen2-0.5B", 896, 14, 2, 64, 4864, 151936),
    ModelShape("Gemma-2-9B", 3584, 16, 8, 256, 14336, 256000, window=4096),
    ModelShape("Falcon-7B", 4544, 71, 1, 64, None, 65024),
    ModelShape("demo", 576, 9, 3, 64, 1536, 49152),
)


@dataclass(frozen=True)
class Variant:
    """One kernel with its compile-time arguments."""

    kernel: Any
    constants: dict[str, Any]
    types: dict[str, str]
    options: dict[str, int]
    budget: Budget
    models: list[str] = field(default_factory=list)
    instructions: tuple[str, ...] = ()  # that its PTX must have
    aligned: frozenset[str] | None = None  # None: all pointers

    @property
    def name(self) -> str:
        """The kernel's."""
        return str(self.kernel.__name__).strip("_")

    @property
    def key(self) -> str:
        """The same for variants that are compiled once."""
        return f"{self.name} {sorted(self.constants.items())} {sorted(self.options.items())}"

    def compile(self) -> Compiled:
        """For a Hopper."""
        pointers = frozenset(name for name, kind in self.types.items() if kind.startswith("*"))
        aligned = set(pointers if self.aligned is None else self.aligned)
        return compile_kernel(self.kernel, self.types, self.constants, aligned, self.options)


def variants(models: Iterable[ModelShape], token_counts: Iterable[int]) -> list[Variant]:
    """Every distinct variant of these models. `token_counts`: of the products with few tokens."""
    found: dict[str, Variant] = {}
    for model in models:
        kinds = (_attention(model), _elementwise(model), _linears(model, token_counts), _sampling(model))
        for variant in itertools.chain(*kinds):
            found.setdefault(variant.key, variant).models.append(model.name)
    return list(found.values())


def _attention(model: ModelShape) -> Iterator[Variant]:
    heads = HeadShape(model.kv_heads, model.heads // model.kv_heads, model.head_dim, torch.bfloat16)
    decode = attention_config.decode_config(heads.padded_dim, torch.bfloat16, HOPPER)
    prompt = attention_config.prompt_config(heads.padded_dim, torch.bfloat16, HOPPER)
    common = heads.constants() | {"PAGE": TOKENS_PER_BLOCK, "WINDOW": model.window, "SOFTCAP": model.window > 0}
    aligned = frozenset(_ALIGNED)
    wide = 208 if heads.padded_dim <= 128 else 255
    for kernel, config, sizes, budget, instructions in (
        # Two programs of an SM fit, so that one loads while the other begins or ends.
        (decode_kernel, decode, {"ROWS": heads.decode_rows}, Budget(wide, SHARED_BYTES // decode.programs_per_sm), ()),
        (
            prompt_kernel,
            prompt,
            {"HEADS": heads.prompt_heads(prompt), "BLOCK_ROWS": prompt.block_rows},
            Budget(wide),
            ("wgmma.mma_async",),
        ),
    ):
        constants = common | sizes | {"BLOCK_KEYS": config.block_keys}
        types = {name: _TYPES.get(name, "i32") for name in kernel.arg_names if name not in constants}
        options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
        yield Variant(kernel, constants, types, options, budget, instructions=instructions, aligned=aligned)
    constants = {
        "WINDOW": model.window,
        "BLOCK_KEYS": decode.block_keys,
        "TILE_TOKENS": prompt.block_rows // heads.prompt_heads(prompt),
        "HEAD_BLOCKS": heads.decode_head_blocks,
    }
    types = {name: _TYPES.get(name, "i32") for name in plan_kernel.arg_names if name not in constants}
    yield Variant(plan_kernel, constants, types, {"num_warps": 4}, Budget(40), aligned=frozenset())


def _elementwise(model: ModelShape) -> Iterator[Variant]:
    yield _simple(
        prepare_step_triton._prepare_step_kernel,
        ["*i64"] * 7 + ["*i32"] + ["*i64"] * 3 + ["*i32"] + ["i32"] * 3,
        {"table_width": 512, "width": 512, "pieces": 1, "block": 512},  # 8,192 tokens
        Budget(48),
    )
    yield _simple(
        embedding_triton._embedding_kernel,
        ["*i64", "*bf16", "*bf16"],
        {"first_id": 0, "num_rows": model.vocabulary, "channels": model.hidden, "block": 1024},
        Budget(24),
    )
    for adds in (False, True):
        yield _simple(
            rms_norm_triton._rms_norm_kernel,
            ["*bf16"] * 4 + ["fp32"],
            {"channels": model.hidden, "adds": adds, "block": triton.next_power_of_2(model.hidden)},
            Budget(48),
            rms_norm_triton.num_warps(model.hidden),
        )
    constants = {
        "has_norm": model.head_norm,
        "num_heads": model.heads,
        "num_kv_heads": model.kv_heads,
        "head_dim": model.head_dim,
        "heads": rotary_kv_store_triton._HEADS,
        "block": triton.next_power_of_2(model.head_dim // 2),
    }
    kernel = rotary_kv_store_triton._rotary_kv_store_kernel
    types = ["*bf16"] * 6 + ["*i64"] + ["*bf16"] * 2 + ["fp32"]
    yield _simple(kernel, types, constants, Budget(72), num_warps=1)
    if model.feed_forward:
        constants = {"size": model.feed_forward, "block": 1024}
        yield _simple(silu_mul_triton._silu_mul_kernel, ["*bf16"] * 2, constants, Budget(32))
    if model.ranks > 1:
        yield _all_reduce(model.ranks)


def _all_reduce(ranks: int) -> Variant:
    constants = {
        "group": GROUP,
        "half_elements": 1 << 19,
        "rank": ranks - 1,
        "size": ranks,
        "sends": True,
        "receives": True,
        "block": all_reduce_triton.BLOCK,
    }
    kernel = all_reduce_triton._all_reduce_kernel
    variant = _simple(kernel, ["*bf16"] * 2 + ["*i64"] * 2 + ["*i32", "i32"], constants, Budget(64))
    ordered = ("atom.global.sys.release.exch", "ld.global.sys.acquire", "ld.global.v4.b32", "st.global.v4.b32")
    return replace(variant, options={"num_warps": all_reduce_triton.NUM_WARPS}, instructions=ordered)


def _sampling(model: ModelShape) -> Iterator[Variant]:
    """Over the whole vocabulary: one rank chooses."""
    vocab = model.vocabulary * model.ranks
    num_chunks, top_width = -(-vocab // sample_step.CHUNK), 20
    shape = {"vocab": vocab, "num_chunks": num_chunks, "has_alias": True, "has_masks": False}
    chunks = {"chunks": triton.next_power_of_2(num_chunks)}
    top = {"top_width": top_width, "top_block": triton.next_power_of_2(num_chunks * top_width)}
    for kernel, constants, num_warps, registers in (
        (sample_step_kernels.edit_kernel, {"staged": False}, sample_step_triton.EDIT_WARPS, 64),
        (sample_step_kernels.edit_kernel, {"staged": True}, sample_step_triton.EDIT_WARPS, 128),
        (cut_kernel, chunks | {"block": sample_step_triton.CUT_BLOCK}, sample_step_triton.CUT_WARPS, 128),
        (sample_step_kernels.weigh_kernel, chunks | {"top_width": top_width}, sample_step_triton.WEIGH_WARPS, 128),
        (sample_step_kernels.choose_kernel, chunks | top | {"staged": False}, sample_step_triton.CHOOSE_WARPS, 64),
        (sample_step_kernels.choose_kernel, chunks | top | {"staged": True}, sample_step_triton.CHOOSE_WARPS, 168),
    ):
        constants = shape | constants | ({} if kernel is cut_kernel else {"chunk": sample_step.CHUNK})
        names = [name for name in kernel.arg_names if name not in constants and name != "overlaps"]
        types = {name: _SAMPLE_TYPES.get(name, "i32") for name in names}
        aligned = frozenset(name for name in names if name.endswith("_ptr")) - {"seats_ptr", "positions_ptr"}
        yield Variant(kernel, constants, types, {"num_warps": num_warps}, Budget(registers), aligned=aligned)


def _linears(model: ModelShape, token_counts: Iterable[int]) -> Iterator[Variant]:
    shapes = [(shape, False) for shape in model.linears]
    if model.feed_forward:
        shapes.append(((2 * model.feed_forward, model.hidden), True))
    for (outs, ins), then_silu_mul in shapes:
        tiles = linear_triton.skinny_config(outs, ins)
        for tokens in token_counts:
            if tiles is None or tokens > tiles.max_tokens:
                continue  # the library's product is taken
            kernel = linear_triton._skinny_kernel
            constants = {
                "num_outs": outs // 2 if then_silu_mul else outs,
                "in_features": ins,
                "has_bias": False,
                "silu_mul": then_silu_mul,
                "tokens": tokens,
                "block_out": tiles.block_out,
                "block_in": tiles.block_in,
                "splits": tiles.splits,
            }
            types = dict(zip(kernel.arg_names, ["*bf16"] * 4 + ["*fp32", "*i32", "i32"], strict=False))
            options = {"num_warps": tiles.num_warps, "num_stages": tiles.stages(tokens)}
            # Two programs of an SM fit, so that one loads while the other begins or ends.
            budget = Budget(128, SHARED_BYTES // 2)
            yield Variant(kernel, constants, types, options, budget, instructions=("wgmma.mma_async",))


def _simple(kernel: Any, types: list[str], constants: dict[str, Any], budget: Budget, num_warps: int = 4) -> Variant:
    """Every parameter that is no constant has its type in `types`, in order."""
    named = dict(zip(kernel.arg_names, types, strict=False))
    return Variant(kernel, constants, named, {"num_warps": num_warps}, budget)
