"""The layout rules of docs/ARCHITECTURE.md and CONTRIBUTING.md that a machine can check."""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAX_LINES = 500
GENERATED = "server/penstock_server/pb/"
SOURCE_ENDINGS = {".rs", ".py", ".proto"}
TEXT_ENDINGS = SOURCE_ENDINGS | {".toml", ".md", ".txt", ".json", ".jsonl", ".yml", ""}


@cache
def files() -> tuple[Path, ...]:
    """What git tracks, or would if it were added."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return tuple(ROOT / name for name in names if (ROOT / name).is_file())


def below(folder: str, ending: str) -> list[Path]:
    """Hand-written files of one kind; a rule that looks at none would pass for ever."""
    found = [path for path in files() if path.suffix == ending and name(path).startswith(folder)]
    found = [path for path in found if not name(path).startswith(GENERATED)]
    assert found, f"no {ending} file below {folder}"
    return found


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def code_lines(path: Path) -> list[tuple[int, str]]:
    """Lines of a Rust file that are not comments."""
    numbered = enumerate(path.read_text().splitlines(), 1)
    return [(number, line) for number, line in numbered if not line.lstrip().startswith("//")]


def imports(path: Path) -> set[str]:
    """Every module that a Python file imports, anywhere in it, by its full name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def top_level(path: Path) -> set[str]:
    return {module.split(".")[0] for module in imports(path)}


def test_files_stay_short():
    long = {
        name(path): lines
        for path in files()
        if path.suffix in SOURCE_ENDINGS and not name(path).startswith(GENERATED)
        if (lines := len(path.read_text().splitlines())) > MAX_LINES
    }
    assert not long


def test_no_file_knows_a_machine_or_a_registry():
    # Written in pieces, so that this file does not match itself.
    hosts = ["pypi" + r"\.org", "crates" + r"\.io/", "npmjs" + r"\.", r"download\.pytorch" + r"\.org"]
    folders = ["/wo" + "rk/", "/ro" + "ot/", "/ho" + "me/[a-z]"]
    pattern = re.compile("|".join([*hosts, *folders]))
    found = [
        f"{name(path)}:{number}: {line.strip()}"
        for path in files()
        if path.suffix in TEXT_ENDINGS and path.name != "Cargo.lock" and path.stat().st_size < 1 << 20
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if pattern.search(line)
    ]
    assert not found


def test_nothing_is_left_for_later_in_code():
    pattern = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X)\b")
    found = [
        f"{name(path)}:{number}"
        for path in files()
        if path.suffix in SOURCE_ENDINGS
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if pattern.search(line)
    ]
    assert not found


def test_the_scheduler_is_pure():
    pattern = re.compile(r"\b(axum|hyper|tonic|tokenizers|tokio|std::(fs|net|io|thread|env)|SystemTime)\b")
    found = [
        f"{name(path)}:{number}: {line.strip()}"
        for path in below("router/src/scheduler", ".rs")
        # Its tests take seeds from whoever runs them, and write what other tests replay.
        if path.parent.name != "tests"
        for number, line in code_lines(path)
        if pattern.search(line)
    ]
    assert not found


def test_dialects_do_not_reach_into_the_scheduler():
    found = [
        f"{name(path)}:{number}: {line.strip()}"
        for path in below("router/src/api", ".rs")
        for number, line in code_lines(path)
        if re.search(r"\bcrate::(scheduler|engine)\b", line)
    ]
    assert not found


def test_kernels_stand_alone():
    allowed = {"torch", "triton", "numpy", "penstock_kernels"} | sys.stdlib_module_names
    foreign = {
        name(path): extra for path in below("kernels/penstock_kernels", ".py") if (extra := top_level(path) - allowed)
    }
    assert not foreign


def shard_files():
    """What runs before the shards, in processes of its own, is no part of them."""
    return [path for path in below("server/penstock_server", ".py") if "/prepare/" not in name(path)]


def test_the_shard_sees_no_text_and_no_network():
    found = [
        name(path) for path in shard_files() if top_level(path) & {"tokenizers", "transformers", "huggingface_hub"}
    ]
    assert not found


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [("layers", "penstock_server.models"), ("models", "penstock_server.engine"), ("models", "penstock_server.service")],
)
def test_imports_point_down(folder, forbidden):
    found = [
        name(path)
        for path in below(f"server/penstock_server/{folder}/", ".py")
        if any(module == forbidden or module.startswith(f"{forbidden}.") for module in imports(path))
    ]
    assert not found


def test_the_environment_is_read_by_the_flags_only():
    python = [
        name(path)
        # Libraries of `prepare` have variables of their own, which users know from elsewhere.
        for path in [*shard_files(), *below("kernels/penstock_kernels", ".py")]
        if re.search(r"os\.environ|os\.getenv", path.read_text())
    ]
    rust = [
        f"{name(path)}:{number}"
        for folder in ("router/src", "launcher/src")
        for path in below(folder, ".rs")
        if path.parent.name != "tests"
        for number, line in code_lines(path)
        if name(path) != "router/src/environment.rs" and re.search(r"env::(var|vars|var_os|vars_os|set_var)\b", line)
    ]
    assert not python + rust
