"""What Rust and Python must both know is written twice; here the two are compared."""

import dataclasses
import re
from pathlib import Path

from penstock_server import exit_codes, models
from penstock_server.config import ShardConfig
from penstock_server.models import config as model_config

ROOT = Path(__file__).parents[2]
LAUNCHER = ROOT / "launcher" / "src"


def rust_list(file: str, constant: str) -> list[str]:
    """The strings of a `const X: &[&str]`."""
    text = (LAUNCHER / file).read_text()
    match = re.search(rf"const {constant}: &\[&str\] = &\[(.*?)\];", text, re.DOTALL)
    assert match, f"{file} has no {constant}"
    return re.findall(r'"([^"]+)"', match.group(1))


def test_the_launcher_knows_the_shards_architectures():
    assert sorted(rust_list("checkpoint.rs", "ARCHITECTURES")) == sorted(models._FAMILIES)


def test_the_launcher_knows_the_shards_activations():
    assert sorted(rust_list("checkpoint.rs", "ACTIVATIONS")) == sorted(model_config._ACTIVATIONS)


def test_the_launcher_writes_the_shards_config():
    text = (LAUNCHER / "shard.rs").read_text()
    struct = re.search(r"pub\(crate\) struct ShardConfig \{(.*?)\n\}", text, re.DOTALL)
    assert struct
    written = re.findall(r"^    (\w+): ", struct.group(1), re.MULTILINE)
    assert written == [field.name for field in dataclasses.fields(ShardConfig)]


def test_the_launcher_reads_the_shards_exit_code():
    text = (LAUNCHER / "supervise.rs").read_text()
    match = re.search(r"const MODEL_UNUSABLE: i32 = (\d+);", text)
    assert match
    assert int(match.group(1)) == exit_codes.BAD_MODEL


def test_the_documentation_knows_every_metric_of_tgi():
    code = set(re.findall(r'"(tgi_\w+)"', (ROOT / "router" / "src" / "metrics.rs").read_text()))
    lines = (ROOT / "docs" / "from-tgi.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("| `tgi_") and "left out" not in line]
    assert {name for row in rows for name in re.findall(r"`(tgi_\w+)`", row)} == code
