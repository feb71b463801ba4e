"""What cannot work is refused at once, with its kind of exit code, and with what to do. The table of all errors is the
first section of docs/errors.md: PENSTOCK_UPDATE_DOCS=1 writes it anew from what was seen."""

import json

import pytest
from harness.documents import UPDATE, section, write_section
from harness.hub import FakeHub, Repository
from harness.refusals import FAILED, HEAD, MODEL, USAGE, Place, Refusal, copy

SECRET = "hf_a_secret_token"
INDEX = "model.safetensors.index.json"


def index(name: str, tensor: str = "model.norm.weight") -> str:
    return json.dumps({"weight_map": {tensor: name}})


def cut(place: Place) -> list[str]:
    return place.file("model.safetensors", (place.llama / "model.safetensors").read_bytes()[:-100])


def pickled(place: Place) -> list[str]:
    (place.llama / "model.safetensors").rename(place.llama / "pytorch_model.bin")
    return ["--model-id", str(place.llama)]


FLAGS = [
    Refusal("a flag that is not there", USAGE, "A typing error, or a flag of another server.", "`launcher --help` lists all.",
            lambda place: ["--no-such-flag"]),
    Refusal("a value that is none", USAGE, "The flag takes something else.", "Give what the message names.",
            lambda place: ["--max-concurrent-requests", "many"]),
    Refusal("a value out of range", USAGE, "The number is too small or too large.", "Give one of the range.",
            lambda place: ["--max-batch-size", "0"]),
    Refusal("a bad variable", USAGE, "As for the flag of the same name.", "Correct or unset the variable.",
            lambda place: place.with_variables(NUM_SHARD="nine")),
    Refusal("a bad log level", USAGE, "LOG_LEVEL or --log-level is no level and no filter.", "Give debug, info, warn or error.",
            lambda place: ["--log-level", "loud"]),
    Refusal("a feature that is not there", USAGE, "TGI has it, this server not yet.", "Leave the flag out, or see from-tgi.md.",
            lambda place: ["--quantize", "awq"]),
    Refusal("two names of one limit", USAGE, "Both the old and the new name are given.", "Leave one out.",
            lambda place: ["--max-input-length", "9", "--max-input-tokens", "9"]),
    Refusal("a prompt as long as the total", USAGE, "Nothing would be left for the answer.", "Raise the total.",
            lambda place: ["--max-input-tokens", "9", "--max-total-tokens", "9"]),
    Refusal("more tokens than positions", USAGE, "The model has fewer positions.", "Lower --max-total-tokens.",
            lambda place: ["--max-total-tokens", "100000"]),
    Refusal("a cache smaller than a request", USAGE, "One request could not be held.", "Raise the cache or lower the total.",
            lambda place: ["--max-batch-total-tokens", "8", "--max-total-tokens", "9"]),
    Refusal("shards that do not divide", USAGE, "Heads are spread evenly over shards.", "Take a number that the message lists.",
            lambda place: ["--num-shard", "3"]),
    Refusal("sharded alone", USAGE, "The two contradict each other.", "Leave one out.",
            lambda place: ["--sharded", "true", "--num-shard", "1"]),
    Refusal("sharded without GPUs", USAGE, "There is nothing that says how many shards.", "Give --num-shard.",
            lambda place: ["--sharded", "true"]),
    Refusal("memory of GPUs on a CPU", USAGE, "The kernel adds over memory of GPUs.", "Leave the flag out.",
            lambda place: ["--num-shard", "2", "--device", "cpu", "--all-reduce", "symmetric"]),
    Refusal("no GPU", USAGE, "No driver, or CUDA_VISIBLE_DEVICES hides all.", "Use --device auto, or make the GPU visible.",
            lambda place: place.with_variables("--device", "cuda", CUDA_VISIBLE_DEVICES="")),
    Refusal("settings without a model", USAGE, "The bundled demo would answer for your model.", "Set MODEL_ID.",
            lambda place: place.with_variables(REVISION="main"), own_model=False),
    Refusal("a cloud's setting without a model", USAGE, "As above, with a cloud's variable.", "Set MODEL_ID.",
            lambda place: place.with_variables(HF_MODEL_ID="org/model"), own_model=False),
]  # fmt: skip
MACHINE = [
    Refusal("a taken port", FAILED, "Another process listens there.", "Stop it, or give another --port.",
            lambda place: place.taken_port()),
    Refusal("a foreign address", FAILED, "The address belongs to another machine.", "Give one of this machine, or 0.0.0.0.",
            lambda place: ["--hostname", "203.0.113.7"]),
    Refusal("too little memory", FAILED, "Weights and KV cache do not fit.", "Lower what the message names, or stop others.",
            lambda place: ["--max-batch-total-tokens", "4000000000"]),
    Refusal("no folder for sockets", FAILED, "TMPDIR is not there or cannot be written.", "Set TMPDIR to a writable folder.",
            lambda place: place.with_variables(TMPDIR="/nowhere")),
    Refusal("no Python", FAILED, "--python or PENSTOCK_PYTHON names no program.", "Name one that has penstock_server.",
            lambda place: ["--python", "/nowhere/python3"]),
    Refusal("a Python without the server", FAILED, "penstock_server is not installed there.", "Name another one, or install it.",
            lambda place: place.with_variables(PYTHONPATH="/nowhere", PYTHONNOUSERSITE="1", PENSTOCK_PYTHON="/usr/bin/python3")),
]  # fmt: skip
FOLDERS = [
    Refusal("no folder", MODEL, "The path is wrong, or not mounted into the container.", "Correct it.",
            lambda place: ["--model-id", "/nowhere/model"]),
    Refusal("a file", MODEL, "The folder is wanted, not a file in it.", "Name the folder.",
            lambda place: ["--model-id", str(place.llama / "config.json")]),
    Refusal("no config", MODEL, "This is no model's folder, or a copy was cut short.", "Copy it again.",
            lambda place: place.file("config.json", None)),
    Refusal("a broken config", MODEL, "The file is not JSON.", "Copy it again.", lambda place: place.file("config.json", "{")),
    Refusal("an unknown architecture", MODEL, "Not supported yet.", "Serve one of those listed.",
            lambda place: place.model(architectures=["GPT2LMHeadModel"])),
    Refusal("an unknown activation", MODEL, "Not supported yet.", "Serve another model.",
            lambda place: place.model(hidden_act="mish")),
    Refusal("an impossible size", MODEL, "The config is damaged.", "Copy it again.", lambda place: place.model(vocab_size=2**62)),
    Refusal("no tokenizer", MODEL, "Neither tokenizer.json nor an older form is there.", "Copy the tokenizer's files too.",
            lambda place: [*place.file("tokenizer.json", None), *place.file("tokenizer_config.json", "{}")]),
    Refusal("a broken tokenizer", MODEL, "The file is not JSON.", "Copy it again.", lambda place: place.file("tokenizer.json", "x")),
    Refusal("a tokenizer of another kind", MODEL, "JSON, but no tokenizer.", "Copy it again.",
            lambda place: place.file("tokenizer.json", "{}")),
    Refusal("a bad end token", MODEL, "generation_config.json is damaged.", "Correct it.",
            lambda place: place.file("generation_config.json", '{"eos_token_id": "x"}')),
    Refusal("no weights", MODEL, "The weights were not copied.", "Copy them.",
            lambda place: place.file("model.safetensors", None)),
    Refusal("pickled weights", MODEL, "Such files can run code when they are read, so they never are.", "Convert them once.",
            pickled),
    Refusal("cut weights", MODEL, "A copy or a download broke off.", "Fetch the file again.", cut),
    Refusal("a pointer", MODEL, "Git LFS left its pointer.", "Run `git lfs pull`.",
            lambda place: place.file("model.safetensors", "version https://git-lfs.github.com/spec/v1\n")),
    Refusal("a missing part", MODEL, "A file that the index names is not there.", "Copy it.",
            lambda place: place.file(INDEX, index("model-00001.safetensors"))),
    Refusal("a name that leads away", MODEL, "The index names a file outside its folder.", "Do not trust this model.",
            lambda place: place.file(INDEX, index("../model.safetensors"))),
    Refusal("a missing tensor", MODEL, "Index and files are of different versions.", "Fetch both again.",
            lambda place: place.file(INDEX, index("model.safetensors", "model.other.weight"))),
]  # fmt: skip
HUBS = [
    Refusal("no such model", MODEL, "A typing error, or a private model.", "Correct the name; for a private one set HF_TOKEN.",
            lambda place: place.by_name("org/none")),
    Refusal("a private model", MODEL, "The hub hides it from strangers.", "Set HF_TOKEN.",
            lambda place: place.by_name("org/private")),
    Refusal("a wrong token", MODEL, "The token is wrong or has expired.", "Make a new one.",
            lambda place: place.by_name("org/private", HF_TOKEN="hf_wrong")),
    Refusal("a gated model", MODEL, "Its terms were not accepted by this account.", "Accept them, then set HF_TOKEN.",
            lambda place: place.by_name("org/gated")),
    Refusal("a weak token", MODEL, "The token may not read this model.", "Give it the right to.",
            lambda place: place.by_name("org/forbidden", HF_TOKEN="hf_weak")),
    Refusal("no such revision", MODEL, "No branch, tag or commit of that name.", "Correct --revision.",
            lambda place: place.by_name("org/tiny", "--revision", "nope")),
    Refusal("offline without the model", MODEL, "HF_HUB_OFFLINE forbids asking.", "Fetch the model once.",
            lambda place: place.by_name("org/tiny", HF_HUB_OFFLINE="1")),
    Refusal("no hub", FAILED, "No network, a proxy, or a wrong HF_ENDPOINT.", "Check them; or fetch the model elsewhere.",
            lambda place: place.by_name("org/tiny", HF_ENDPOINT="http://127.0.0.1:1")),
    Refusal("a broken hub", FAILED, "The hub has trouble of its own.", "Try again later.",
            lambda place: place.by_name("org/down")),
    Refusal("only pickled weights", MODEL, "The model has no safetensors.", "Convert it, or take a revision that has.",
            lambda place: place.by_name("org/pickle")),
    Refusal("a hub's index that leads away", MODEL, "The index names a file outside its folder.", "Do not trust this model.",
            lambda place: place.by_name("org/escape")),
    Refusal("a hub's unknown architecture", MODEL, "Not supported yet; no weights were fetched.", "Serve one of those listed.",
            lambda place: place.by_name("org/other")),
    Refusal("no config on the hub", MODEL, "This is no model for transformers.", "Name another.",
            lambda place: place.by_name("org/empty")),
]  # fmt: skip
ALL = [*FLAGS, *MACHINE, *FOLDERS, *HUBS]
SEEN: dict[str, str] = {}


@pytest.fixture(scope="module")
def hub(llama_folder):
    whole = Repository.of_folder(llama_folder)
    config = json.loads(whole.files["config.json"])
    other = json.dumps({**config, "architectures": ["OtherForCausalLM"]}).encode()
    models = {
        "org/tiny": whole,
        "org/private": Repository(whole.files, token=SECRET),
        "org/gated": Repository({}, refusal=(403, "GatedRepo")),
        "org/forbidden": Repository({}, refusal=(403, None)),
        "org/down": Repository({}, refusal=(502, None)),
        "org/pickle": Repository({"config.json": whole.files["config.json"], "pytorch_model.bin": b"x"}),
        "org/escape": Repository(whole.files | {INDEX: index("../../../config.json").encode()}),
        "org/other": Repository(whole.files | {"config.json": other}),
        "org/empty": Repository({"README.md": b"x"}),
    }
    with FakeHub(models) as hub:
        yield hub


@pytest.mark.parametrize("refusal", ALL, ids=lambda refusal: refusal.name)
def test_an_error_is_documented_as_it_is(tmp_path, llama_folder, hub, refusal):
    hub.downloads.clear()
    place = Place(tmp_path, copy(llama_folder, tmp_path / "llama"), hub)
    try:
        row = refusal.row(place)
    finally:
        for holder in place.held:
            holder.close()
    assert not [name for name in hub.downloads if name.endswith(".safetensors")], "weights were fetched in vain"
    assert place.variables.get("HF_TOKEN", SECRET) not in row
    SEEN[refusal.name] = row
    if not UPDATE:
        assert row in section("errors.md", "start-up")


def test_nothing_else_is_documented():
    if UPDATE:
        write_section("errors.md", "start-up", HEAD, [SEEN[refusal.name] for refusal in ALL])
    assert len(section("errors.md", "start-up")) == len(ALL)
