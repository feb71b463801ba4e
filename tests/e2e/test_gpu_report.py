"""`make gpu-report` without a GPU: every part runs to its end on the CPU, and a report goes on where it stopped."""

import argparse
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu_report.py"
# A hang guard, several times what all parts take on two busy cores.
LIMIT_S = 1500


def report(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--dry-run", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)


def kept_figures() -> dict[str, int]:
    """Sizes of the files of figures that are kept."""
    return {file.name: file.stat().st_size for file in (ROOT / "benchmarks" / "results").glob("*.jsonl")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The folder of a report of all parts, and how it ended."""
    out = tmp_path_factory.mktemp("report")
    before = kept_figures()
    run = report("--out", str(out), "--model", str(out / "model"), "--budget", str(LIMIT_S))
    assert kept_figures() == before, "a dry run's figures are among those that are kept"
    return out, run


def test_every_part_runs_to_its_end(whole: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    out, run = whole
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    state = json.loads((out / "state-dry.json").read_text())
    assert state.pop("vllm") == "skipped: vllm is not installed"
    assert len(state) == 12
    assert all(status.startswith("passed") for status in state.values()), state


def test_figures_stand_beside_what_they_are_held_to(whole: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    """Of each part in the table, and in files of the report's own: none of a dry run among those that are kept."""
    out, run = whole
    for figure in (
        "gpu_ceilings read_bandwidth", "gpu_decode decode/1 ", "gpu_decode prefill/400", "gpu_gaps drawn/4/p99",
        "gpu_serving 2/decode_tokens_per_s", "attention decode 1 rows", "sample temperature+top_k+top_p",
        "rms_norm", "gpu_start second/weights ", "gpu_turnaround 8 rows/p50", "gpu_peers transformers/2",
    ):  # fmt: skip
        assert figure in run.stdout
    lines = [json.loads(line) for file in out.glob("*.jsonl") for line in file.read_text().splitlines()]
    assert {line["bench"] for line in lines} >= {"gpu_decode", "gpu_gaps", "gpu_serving", "gpu_start"}
    assert "9 decode steps" in (out / "profile.txt").read_text()


def test_what_has_run_is_not_run_again(whole: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    out, _ = whole
    run = report("--out", str(out), "--model", str(out / "model"))
    assert run.returncode == 0
    assert "passed" not in run.stdout


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    return importlib.import_module("gpu_report")


def options(out: Path) -> argparse.Namespace:
    return argparse.Namespace(out=out, model=out / "model", dry_run=True)


def test_a_part_that_fails_or_takes_too_long_or_cannot_run_is_told_apart(module: object, tmp_path: Path) -> None:
    def run(code: str, limit_s: float = 60) -> str:
        part = module.Part("part", ("-c", code), 60, own_options=False)
        return module.run_part(part, options(tmp_path), limit_s)[0]

    assert run("print('fine')").startswith("passed")
    assert "status 3" in run("raise SystemExit(3)")
    assert "too slow" in run("import time; time.sleep(60)", 1)
    assert run("print('skipped: no such card'); raise SystemExit(75)") == "skipped: no such card"


def test_a_report_goes_on_with_what_failed(module: object, tmp_path: Path) -> None:
    state = module.State(tmp_path, dry=False)
    for name, status in (("a", "passed in 3 s"), ("b", "failed after 2 s, status 1"), ("c", "skipped: why")):
        state.keep(name, status)
    again = module.State(tmp_path, dry=False)
    assert [again.is_done(name) for name in "abcd"] == [True, False, True, False]
    with pytest.raises(SystemExit, match=r"state\.json is that of a real report: give another --out"):
        module.State(tmp_path, dry=True)


def test_without_budget_nothing_begins_and_the_report_says_so(tmp_path: Path) -> None:
    run = report("--out", str(tmp_path), "--model", str(tmp_path / "model"), "--budget", "5")
    assert run.returncode == 1
    assert run.stdout.count("out of budget, run the command again to go on") == 13


def test_the_table_says_what_was_reached(module: object) -> None:
    def line(value: float, peer: str, ratio: float, **more: float) -> dict[str, object]:
        return {"bench": "b", "case": "c", "value": value, "unit": "u", "peer": peer, "ratio": ratio, **more}

    reached, missed, limit, over = (
        module.table([found]).splitlines()[1]
        for found in (line(9, "p", 0.9, target=0.88), line(8, "p", 0.8, target=0.88), line(5, "limit", 0.5),
                      line(30, "limit", 1.5))
    )  # fmt: skip
    assert reached.endswith("0.88: reached")
    assert missed.endswith("0.88: MISSED")
    assert limit.endswith("reached")
    assert over.endswith("MISSED")
