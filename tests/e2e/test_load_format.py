"""`--load-format`: random weights where there are none to read, and none where they were not asked for."""

import shutil

import pytest
from harness.client import body, generate
from harness.hub import FakeHub, Repository
from harness.launcher import Launcher

NUM_TOKENS = 8


@pytest.fixture
def folder(llama_folder, tmp_path):
    """Config and tokenizer, and beside them a file that stops whoever opens it."""
    copy = tmp_path / "model"
    shutil.copytree(llama_folder, copy)
    (copy / "model.safetensors").write_bytes(b"no weights")
    return copy


def answer(launcher):
    generated = generate(launcher.wait_until_ready(), body("once upon a time", NUM_TOKENS, ignore_eos_token=True))
    assert generated.error is None
    assert len(generated.ids) == NUM_TOKENS
    assert "WARNING rank=0 --load-format dummy: the weights are random" in launcher.log
    assert launcher.stop() == 0
    return generated.ids


def test_dummy_weights_serve_without_a_weight_file(launch, folder):
    flags = ("--model-id", folder, "--load-format", "dummy")
    with_broken_file = answer(launch(*flags))
    (folder / "model.safetensors").unlink()
    assert answer(launch(*flags)) == with_broken_file


def test_of_a_hubs_model_no_weights_are_fetched(tmp_path, llama_folder):
    repository = Repository.of_folder(llama_folder)
    assert "model.safetensors" in repository.files
    with FakeHub({"org/pet": repository}) as hub:
        variables = {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_OFFLINE": "",
            "HF_HUB_CACHE": "",
        }
        flags = ("--model-id", "org/pet", "--load-format", "dummy")
        with Launcher(tmp_path, *flags, variables=variables) as launcher:
            answer(launcher)
        assert {"config.json", "tokenizer.json"} <= set(hub.downloads)
        assert "model.safetensors" not in hub.downloads


@pytest.mark.parametrize("flags", [[], ["--load-format", "safetensors"]])
def test_weights_that_are_not_there_are_refused_otherwise(launch, folder, flags):
    (folder / "model.safetensors").unlink()
    launcher = launch("--model-id", folder, *flags)
    launcher.wait_for_line("has no weights: neither")
    assert launcher.wait() == 3


def test_an_unknown_format_is_refused_with_the_choices(launch, folder):
    launcher = launch("--model-id", folder, "--load-format", "gguf")
    launcher.wait_for_line("invalid value 'gguf' for '--load-format <LOAD_FORMAT>'")
    launcher.wait_for_line(r"\[possible values: auto, safetensors, dummy\]")
    assert launcher.wait() == 2
