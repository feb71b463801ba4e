"""Reading checkpoints: slices, what is missing or left over, names that would leave the folder, pickles."""

import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from penstock_server.layers.embedding import LmHead, VocabParallelEmbedding
from penstock_server.layers.linear import ColumnParallelLinear, LoadContext, Projection, RowParallelLinear
from penstock_server.parallel import Split, TensorParallel
from penstock_server.weights import CheckpointReader, WeightError

CPU = torch.device("cpu")


class RankOf(TensorParallel):
    """One rank of several that never talks to the others: enough for loading."""

    def __init__(self, rank, size):
        super().__init__(0, 1, None, CPU)
        self.split, self.rank, self.size = Split(rank, size), rank, size


def checkpoint(folder, tensors, index=None):
    """A folder with these tensors in one file, or in the files that `index` names: {file: tensor names}."""
    folder.mkdir(parents=True, exist_ok=True)
    if index is None:
        save_file(tensors, folder / "model.safetensors")
        return folder
    for file_name, names in index.items():
        save_file({name: tensors[name] for name in names}, folder / file_name)
    write_index(folder, {name: file_name for file_name, names in index.items() for name in names})
    return folder


def write_index(folder, weight_map):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def as_matrix(layer, in_features):
    """The matrix that a layer without bias applies, exactly: every product but one is with a zero."""
    return layer(torch.eye(in_features)).T


def test_reads_parts_of_several_files(tmp_path):
    tensors = {"a": torch.randn(7, 5), "b": torch.randn(3).bfloat16()}
    checkpoint(tmp_path, tensors, {"one.safetensors": ["a"], "two.safetensors": ["b"]})
    with CheckpointReader(tmp_path) as reader:
        assert torch.equal(reader.read("a", (7, 5), (slice(2, 4),)), tensors["a"][2:4])
        assert torch.equal(reader.read("a", (7, 5), (slice(0, 7), slice(1, 3))), tensors["a"][:, 1:3])
        assert torch.equal(reader.read("b", (3,)), tensors["b"])
        assert "a" in reader
        assert "c" not in reader


def test_only_what_the_index_names_is_read(tmp_path):
    checkpoint(tmp_path, {"a": torch.ones(2), "b": torch.ones(2)}, {"one.safetensors": ["a", "b"]})
    write_index(tmp_path, {"a": "one.safetensors"})
    (tmp_path / "consolidated.safetensors").write_bytes(b"not a safetensors file")
    with CheckpointReader(tmp_path) as reader:
        reader.read("a", (2,))


def test_a_stale_index_beside_a_whole_file_is_named(tmp_path):
    checkpoint(tmp_path, {"a": torch.ones(2)})
    write_index(tmp_path, {"a": "model-00001-of-00002.safetensors"})
    text = r"names model-00001-of-00002\.safetensors, which is not in the folder.* delete .*index\.json"
    with pytest.raises(WeightError, match=text):
        CheckpointReader(tmp_path)


def test_progress_reaches_one_and_counts_what_was_wanted(tmp_path):
    seen = []
    folder = checkpoint(tmp_path, {"a": torch.ones(2), "b": torch.ones(2)})
    with CheckpointReader(folder, (), lambda *told: seen.append(told)) as reader:
        reader.read("a", (2,))
        reader.read("b", (2,), (slice(0, 1),))
    assert seen == [(0.5, 8), (1.0, 12)]


def test_a_missing_tensor_is_named(tmp_path):
    with (
        pytest.raises(WeightError, match=r"no tensor model\.norm\.weight"),
        CheckpointReader(checkpoint(tmp_path, {"a": torch.ones(2)})) as reader,
    ):
        reader.read("model.norm.weight", (2,))


def test_a_wrong_shape_is_named(tmp_path):
    with (
        pytest.raises(WeightError, match=r"a has shape \[2\], the config asks for \[3\]"),
        CheckpointReader(checkpoint(tmp_path, {"a": torch.ones(2)})) as reader,
    ):
        reader.read("a", (3,))


def test_leftovers_are_named_except_known_ones(tmp_path):
    names = ["a", "x.1.inv_freq", "lm_head.weight", *(f"extra.{i}" for i in range(7))]
    folder = checkpoint(tmp_path, {name: torch.ones(1) for name in names})
    with (
        pytest.raises(WeightError, match=r"no use for: extra\.0, extra\.1, extra\.2, extra\.3, extra\.4 and 2 more$"),
        CheckpointReader(folder, (r"x\.\d+\.inv_freq", r"lm_head\.weight")) as reader,
    ):
        reader.read("a", (1,))


def test_an_error_inside_is_not_hidden_by_leftovers(tmp_path):
    with pytest.raises(KeyError, match="mine"), CheckpointReader(checkpoint(tmp_path, {"a": torch.ones(1)})):
        raise KeyError("mine")


def test_quantized_tensors_are_refused(tmp_path):
    with (
        pytest.raises(WeightError, match=r"a is stored as torch\.int8"),
        CheckpointReader(checkpoint(tmp_path, {"a": torch.ones(2, dtype=torch.int8)})) as reader,
    ):
        reader.read("a", (2,))


@pytest.mark.parametrize(
    "file_name",
    ["../x.safetensors", "/x.safetensors", "a/b.safetensors", "a\\b.safetensors", "..safetensors", "a..b.safetensors",
     ".hidden.safetensors", "x.bin", "", "x.safetensors\n", None, 3],
)  # fmt: skip
def test_file_names_that_are_not_plain_are_refused(file_name, tmp_path):
    write_index(tmp_path, {"a": file_name})
    with pytest.raises(WeightError, match=r"not a plain \.safetensors file name"):
        CheckpointReader(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": []}', "{"])
def test_a_broken_index_is_named(text, tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(WeightError, match=r"model\.safetensors\.index\.json"):
        CheckpointReader(tmp_path)


def test_an_index_that_promises_too_much_is_refused(tmp_path):
    checkpoint(tmp_path, {"a": torch.ones(1)}, {"one.safetensors": ["a"]})
    write_index(tmp_path, {"a": "one.safetensors", "b": "one.safetensors"})
    with pytest.raises(WeightError, match=r"one\.safetensors has no tensor b"):
        CheckpointReader(tmp_path)
    write_index(tmp_path, {"a": "gone.safetensors"})
    with pytest.raises(WeightError, match=r"names gone\.safetensors"):
        CheckpointReader(tmp_path)


def test_a_broken_file_is_named(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(WeightError, match=r"model\.safetensors is not a readable safetensors file"):
        CheckpointReader(tmp_path)


def test_pickles_are_refused_with_advice(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(WeightError, match=r"pytorch_model\.bin.*convert them once with transformers.*save_pretrained"):
        CheckpointReader(tmp_path)


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(WeightError, match="has no weights"):
        CheckpointReader(tmp_path)


SIZES = st.integers(1, 8)


def contexts(folder, size):
    for rank in range(size):
        with CheckpointReader(folder) as reader:
            yield LoadContext(reader, RankOf(rank, size), CPU, torch.float32)


def property_test(*strategies):
    """Writes files, which hypothesis would call slow."""
    health = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    return lambda test: health(given(*strategies)(test))


@property_test(SIZES, st.integers(1, 40), st.integers(1, 40))
def test_column_parallel_parts_join_to_the_whole(tmp_path, size, first, second):
    tensors = {"p.weight": torch.randn(size * first, 6), "q.weight": torch.randn(second + size, 6)}
    checkpoint(tmp_path, tensors)
    parts = {"p": [], "q": []}
    for context in contexts(tmp_path, size):
        shapes = {name: tensors[f"{name}.weight"].shape[0] for name in parts}
        split = {name: context.parallel.split.part(total) for name, total in shapes.items()}
        projections = [Projection(name, shapes[name], split[name]) for name in parts]
        matrix = as_matrix(ColumnParallelLinear(context, projections, 6, bias=False), 6)
        sizes = [part.stop - part.start for part in split.values()]
        for name, part in zip(parts, matrix.split(sizes), strict=True):
            parts[name].append(part)
    for name, joined in parts.items():
        assert torch.equal(torch.cat(joined), tensors[f"{name}.weight"])


@property_test(SIZES, st.integers(0, 40))
def test_row_parallel_parts_join_to_the_whole(tmp_path, size, extra):
    inputs = size + extra
    tensors = {"o.weight": torch.randn(5, inputs), "o.bias": torch.randn(5)}
    checkpoint(tmp_path, tensors)
    joined, bias = [], torch.zeros(5)
    for context in contexts(tmp_path, size):
        part = context.parallel.split.part(inputs)
        layer = RowParallelLinear(context, "o", (5, inputs), part, bias=True)
        zero = layer(torch.zeros(1, part.stop - part.start))[0]
        bias += zero
        assert context.parallel.rank == 0 or not zero.any(), "a bias must be added once"
        if context.parallel.rank:
            joined.append(as_matrix(layer, part.stop - part.start))
        else:
            joined.append(tensors["o.weight"][:, part])
    assert torch.equal(torch.cat(joined, dim=1), tensors["o.weight"])
    assert torch.equal(bias, tensors["o.bias"])


@property_test(SIZES, st.integers(8, 70))
def test_vocabulary_parts_join_to_the_whole(tmp_path, size, vocab_size):
    table = torch.randn(vocab_size, 6)
    checkpoint(tmp_path, {"e.weight": table, "h.weight": table.flip(0).contiguous()})
    ids, hidden = torch.arange(vocab_size), torch.eye(6)
    embedded, logits = torch.zeros(vocab_size, 6), []
    for context in contexts(tmp_path, size):
        layer = VocabParallelEmbedding(context, "e", vocab_size, 6)
        embedded += layer(ids)
        logits.append(LmHead.load(context, "h", vocab_size, 6)(hidden))
    assert torch.equal(embedded, table)
    assert torch.equal(torch.cat(logits, dim=1)[:, :vocab_size].T, table.flip(0))


@given(SIZES, st.sampled_from([1, 2, 3, 4, 5, 6, 8, 12, 16, 32]))
def test_every_query_head_finds_its_key_value_head(size, num_kv_heads):
    group = 4
    num_heads = num_kv_heads * group
    if num_heads % size or (num_kv_heads % size and size % num_kv_heads):
        with pytest.raises(ValueError, match="do not divide"):
            Split(0, size).query_heads(num_heads), Split(0, size).kv_heads(num_kv_heads)
        return
    covered = []
    for rank in range(size):
        heads, kv_heads = Split(rank, size).query_heads(num_heads), Split(rank, size).kv_heads(num_kv_heads)
        local_group = (heads.stop - heads.start) // (kv_heads.stop - kv_heads.start)
        for local, head in enumerate(range(heads.start, heads.stop)):
            assert kv_heads.start + local // local_group == head // group
        covered += range(heads.start, heads.stop)
    assert covered == list(range(num_heads))


def test_a_rank_beyond_the_ranks_is_refused():
    with pytest.raises(ValueError, match="rank 2 is not below"):
        Split(2, 2)
