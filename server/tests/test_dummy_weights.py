"""Random weights from a config alone: the same for everybody, and no answer that blows up."""

import json
import logging

import pytest
import torch
from model_testkit.paged import PagedModel
from model_testkit.tiny_llama import CASES, save

from penstock_server import models
from penstock_server.dummy_weights import DummyReader
from penstock_server.models.source import ModelSource
from penstock_server.parallel import TensorParallel

CPU = torch.device("cpu")


def test_a_tensor_follows_from_its_name():
    reader = DummyReader(torch.bfloat16, CPU)
    shape = (300, 64)
    matrix = reader.read("a.weight", shape)
    assert (matrix.dtype, matrix.shape) == (torch.bfloat16, shape)
    assert matrix.float().std().item() == pytest.approx(64**-0.5, rel=0.05)
    assert torch.equal(DummyReader(torch.bfloat16, CPU).read("a.weight", shape), matrix)
    assert not torch.equal(reader.read("b.weight", shape), matrix)
    rows, columns = (slice(100, 200),), (slice(0, 300), slice(32, 64))
    assert torch.equal(reader.read("a.weight", shape, rows), matrix[100:200])
    assert torch.equal(reader.read("a.weight", shape, columns), matrix[:, 32:])
    assert reader.read("norm.weight", (3,)).tolist() == [1, 1, 1]
    assert reader.read("a.bias", (3,), (slice(0, 2),)).tolist() == [0, 0]


@pytest.mark.parametrize("case", ["untied", "tied", "biases", "tied-bfloat16"])
def test_a_deep_model_of_a_config_alone_has_logits_of_ordinary_size(case, tmp_path, caplog):
    save(tmp_path, **CASES[case], num_hidden_layers=1)
    for path in tmp_path.iterdir():
        if path.name != "config.json":
            path.unlink()
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 40, "hidden_size": 256}))

    def logits():
        source = ModelSource(tmp_path, CPU, "float32", "dummy")
        model = models.load(source, TensorParallel(0, 1, None, CPU))
        return PagedModel(model).run(list(range(60)), [60])

    with caplog.at_level(logging.WARNING):
        first = logits()
    assert "random" in caplog.text
    assert first.isfinite().all()
    assert 0.5 < first.std(dim=1).min() <= first.std(dim=1).max() < 2
    assert first.argmax(dim=1).unique().numel() > 2, "the tokens differ"
    assert torch.equal(logits(), first)
