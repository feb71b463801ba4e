"""Makes what a machine with a GPU but no Rust needs of this checkout beside its files: both programs without their
symbols, in a folder, with a script that runs `gpu_report.py` with them. Prints how much has to travel.

`python benchmarks/pack_gpu.py [--folder target/gpu-pack]`, after `make build`; there: `bash target/gpu-pack/run`.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
LIMIT_MIB = 60
RUN = """#!/usr/bin/env bash
# Runs the report with the programs beside this script and the Python that is here. Options are passed on.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
cd "{root}"
export PENSTOCK_LAUNCHER="$here/launcher" PENSTOCK_PYTHON="$(command -v python3)"
export PYTHONPATH=server:kernels:kernels/benches:benchmarks
exec python3 benchmarks/gpu_report.py "$@"
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "target" / "gpu-pack")
    folder = parser.parse_args().folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in ("launcher", "router"):
        # The copies of `make build`, which nothing else changes.
        shutil.copy2(Path(sys.executable).parent / name, folder / name)
        subprocess.run(["strip", str(folder / name)], check=True)
    up = Path(*[".."] * len(folder.relative_to(ROOT).parts))
    (folder / "run").write_text(RUN.format(root="$here/" + str(up)))
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = [ROOT / name for name in tracked.split("\0") if name] + list(folder.iterdir())
    mib = sum(file.stat().st_size for file in files if file.is_file()) / 2**20
    print(f"{folder}: {mib:.1f} MiB travel, this folder and the checkout's files; {LIMIT_MIB} may")
    return 0 if mib <= LIMIT_MIB else 1


if __name__ == "__main__":
    sys.exit(main())
