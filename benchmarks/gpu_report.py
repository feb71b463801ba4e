"""All that needs a GPU, in parts of their own processes: the card's ceilings, tests, then figures beside the former.
What did not fit into the budget, or failed, runs when the same command is given again.

`PYTHONPATH=server:kernels:kernels/benches:benchmarks python benchmarks/gpu_report.py --out DIR --model DIR`; with
`--dry-run` every part runs to its end on the CPU, with a toy.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import record

ROOT = Path(__file__).parent.parent
STATE, DRY_STATE = "state.json", "state-dry.json"
BUDGET_S = 480
SKIPPED = 75  # a part's exit status when it cannot run here, as EX_TEMPFAIL
PATHS = ("server", "kernels", "kernels/benches", "benchmarks")
# Their last lines say what is missing here.
TAIL_LINES = 12


@dataclass(frozen=True, slots=True)
class Part:
    """A program, and what it may take on an H100, in seconds; nothing has measured all of them yet."""

    name: str
    command: tuple[str, ...]
    limit_s: int
    own_options: bool = True  # takes those of `gpu_bed`


def parts(dry: bool) -> list[Part]:
    """In the order of what is wanted most where the machine is lent for minutes."""
    tests = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:benchmark", "-m", "gpu")
    # A machine may lack what only some files of tests import; the others still run.
    tests += ("--continue-on-collection-errors", "kernels/tests", "server/tests")
    # Without a GPU they can only be collected.
    tests += ("--collect-only",) if dry else ()
    sampling = ("server/benches/bench_sample.py", *(("--vocab-size", "500", "--rounds", "1") if dry else ()))
    return [
        Part("ceilings", ("benchmarks/gpu_ceilings.py",), 40),
        Part("tests", tests, 240, own_options=False),
        Part("decode", ("benchmarks/gpu_decode.py",), 120),
        Part("gaps", ("benchmarks/gpu_gaps.py",), 60),
        Part("serving", ("benchmarks/gpu_serving.py",), 180),
        Part("attention", ("kernels/benches/bench_attention.py",), 60, own_options=False),
        Part("sampling", sampling, 60, own_options=False),
        Part("elementwise", ("kernels/benches/bench_elementwise.py",), 60, own_options=False),
        Part("start", ("benchmarks/gpu_start.py",), 90),
        Part("turnaround", ("benchmarks/gpu_turnaround.py",), 60),
        Part("all_reduce", ("benchmarks/gpu_all_reduce.py",), 60),
        Part("transformers", ("benchmarks/gpu_peers.py", "--peer", "transformers"), 120),
        Part("vllm", ("benchmarks/gpu_peers.py", "--peer", "vllm"), 240),
    ]


class State:
    """Which parts have run, kept in a file after each."""

    def __init__(self, folder: Path, dry: bool) -> None:
        """Raises SystemExit where the folder has that of the other kind: a dry run has measured nothing."""
        folder.mkdir(parents=True, exist_ok=True)
        self._path, other = folder / (DRY_STATE if dry else STATE), folder / (STATE if dry else DRY_STATE)
        if other.exists():
            raise SystemExit(f"{other} is that of {'a real report' if dry else 'a dry run'}: give another --out")
        self.status: dict[str, str] = json.loads(self._path.read_text()) if self._path.exists() else {}

    def keep(self, name: str, status: str) -> None:
        self.status[name] = status
        self._path.write_text(json.dumps(self.status, indent=1))

    def is_done(self, name: str) -> bool:
        """It passed, or cannot run here."""
        return self.status.get(name, "").startswith(("passed", "skipped"))


def run_part(part: Part, options: argparse.Namespace, limit_s: float) -> tuple[str, list[dict[str, object]]]:
    """Its status in words, and its figures."""
    command = [sys.executable, *part.command]
    if part.own_options:
        command += ["--out", str(options.out), "--model", str(options.model), *(["--dry-run"] * options.dry_run)]
    paths = os.pathsep.join([*(str(ROOT / path) for path in PATHS), os.environ.get("PYTHONPATH", "")])
    log = options.out / f"{part.name}.log"
    begin = time.monotonic()
    with log.open("w") as file:
        try:
            code = subprocess.run(
                command, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT, timeout=limit_s, check=False,
                env={**os.environ, "PYTHONPATH": paths},
            ).returncode  # fmt: skip
        except subprocess.TimeoutExpired:
            code = None
    seconds, lines = time.monotonic() - begin, log.read_text().splitlines()
    if code == SKIPPED:
        return lines[-1] if lines else "skipped", []
    if code != 0:
        print("\n".join(lines[-TAIL_LINES:]))
        return f"failed after {seconds:.0f} s, " + ("too slow" if code is None else f"status {code}"), []
    return f"passed in {seconds:.0f} s", list(figures(lines))


def figures(lines: list[str]) -> Iterator[dict[str, object]]:
    """Those among the lines that a part printed."""
    for line in lines:
        if line.startswith('{"bench"'):
            yield json.loads(line)


def table(found: list[dict[str, object]]) -> str:
    """One line a figure: value, peer, ratio, and whether that is what is wanted."""
    rows = [f"{'figure':<44}{'value':>12} {'unit':<10}{'ratio':>7}  {'of':<44}target"]
    for line in found:
        value, ratio, peer, target = (line.get(key) for key in ("value", "ratio", "peer", "target"))
        verdict = ""
        if isinstance(ratio, float | int):
            if target is not None:
                verdict = f"{target}: {'reached' if ratio >= float(str(target)) else 'MISSED'}"
            elif peer == "limit":
                verdict = "reached" if ratio <= 1 else "MISSED"
        name = f"{line['bench']} {line['case']}"
        rows.append(f"{name:<44}{value!s:>12} {line['unit']!s:<10}{ratio or '':>7}  {peer or '':<44}{verdict}")
    return "\n".join(rows)


def main() -> int:
    names = [part.name for part in parts(dry=False)]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, with a toy; figures go to --out")
    parser.add_argument("--out", type=Path, help="logs, state and profile [default: target/gpu-report]")
    parser.add_argument("--model", type=Path, default=Path("/dev/shm/penstock-8b"), help="made there: 16 GB of files")
    parser.add_argument(
        "--budget", type=float, default=BUDGET_S, help="seconds; a part begins with half its limit left"
    )
    parser.add_argument("--parts", nargs="*", choices=names, help="these again, whatever has run")
    options = parser.parse_args()
    default = ROOT / "target" / ("gpu-report-dry" if options.dry_run else "gpu-report")
    options.out = (options.out or default).resolve()
    state, begin, found, failed = State(options.out, options.dry_run), time.monotonic(), [], 0
    for part in parts(options.dry_run):
        if part.name not in options.parts if options.parts else state.is_done(part.name):
            continue
        left = options.budget - (time.monotonic() - begin)
        if left < part.limit_s / 2:
            print(f"{part.name}: out of budget, run the command again to go on", flush=True)
            failed += 1
            continue
        status, lines = run_part(part, options, min(part.limit_s, left))
        state.keep(part.name, status)
        print(f"{part.name}: {status}", flush=True)
        failed += status.startswith("failed")
        found += lines
        if not part.own_options and not options.dry_run:
            for line in lines:
                record.keep(line, "gpu_kernels")
    print(table(found))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
