"""Memory while a rank loads and after, measured in a process of its own.

The model has about 135 million random parameters, stored in bfloat16, and tied embeddings, which the checkpoint holds
twice. The base of a rank is what the same process holds after loading and running a tiny model: libraries, thread
stacks, oneDNN's code.
"""

import json
import os
import subprocess
import sys

import pytest
import torch
from model_testkit.tiny_llama import save
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from penstock_kernels import linear

PEAK_SHARE = 1.3
REST_SHARE = 1.15

_RANK = """
import json, sys
from pathlib import Path
import torch
from model_testkit.paged import PagedModel
from penstock_server import models
from penstock_server.models.source import ModelSource
from penstock_server.parallel import TensorParallel

def memory(key):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024

rank, size, tiny, big, rendezvous = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]
torch.set_num_threads(1)
device = torch.device("cpu")
parallel = TensorParallel(rank, size, Path(rendezvous), device)
def load(folder):
    return models.load(ModelSource(Path(folder), device, "float32"), parallel)
PagedModel(load(tiny)).run(list(range(20)), [10])
base = memory("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
model = load(big)
print(json.dumps({"base": base, "peak": memory("VmHWM"), "rest": memory("VmRSS")}))
parallel.close()
"""


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """(tiny, 135M) folders, and the bytes of the large one in float32."""
    tiny, big = tmp_path_factory.mktemp("tiny"), tmp_path_factory.mktemp("big")
    save(tiny, num_attention_heads=4)
    shape = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "head_dim": 72}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4}
    config = LlamaConfig(vocab_size=49152, tie_word_embeddings=True, **shape, **heads)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    config.architectures = [LlamaForCausalLM.__name__]
    config.save_pretrained(big)
    tensors = {name: parameter.data for name, parameter in model.named_parameters()}
    copy = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors | {"lm_head.weight": copy}, big / "model.safetensors")
    return tiny, big, 4 * sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("size", [1, 2])
def test_a_rank_peaks_and_rests_near_its_own_share(size, checkpoints, tmp_path):
    if not linear.can_pack(torch.float32):
        pytest.skip("this torch has no packed linear")
    tiny, big, total = checkpoints
    command = [sys.executable, "-c", _RANK]
    arguments = [str(size), str(tiny), str(big), str(tmp_path / "rendezvous")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    processes = [
        subprocess.Popen([*command, str(rank), *arguments], stdout=subprocess.PIPE, text=True, env=environment)
        for rank in range(size)
    ]
    share = total / size
    try:
        for process in processes:
            output, _ = process.communicate(timeout=240)
            assert process.returncode == 0
            memory = json.loads(output)
            peak, rest = ((memory[key] - memory["base"]) / share for key in ("peak", "rest"))
            print(f"share {share / 2**20:.0f} MiB: peak {peak:.3f}, at rest {rest:.3f} of it")
            assert peak <= PEAK_SHARE
            assert rest <= REST_SHARE
    finally:
        for process in processes:
            process.kill()
            process.wait()
