"""Writes the Python stubs of `proto/` into `penstock_server/pb`: `make proto` runs it.

grpcio-tools is the oldest supported one, because its output refuses to import beside anything older than itself. uv
fetches it into a throw-away environment; the stubs are checked in and `server/tests/test_pb.py` finds drift.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

OLDEST_GRPCIO_TOOLS = "1.74.0"
REPOSITORY = Path(__file__).resolve().parent.parent
PROTO_FILES = ("shard/v1/shard.proto", "penstock/v1/generation.proto")


def protoc(output: Path) -> None:
    """Runs the oldest supported protoc over `PROTO_FILES`. Raises CalledProcessError when it or its download fails."""
    tools = ["uv", "run", "--quiet", "--no-project", "--with", f"grpcio-tools=={OLDEST_GRPCIO_TOOLS}"]
    tools += ["--with", "setuptools", "python", "-m", "grpc_tools.protoc"]
    arguments = [
        f"--proto_path={REPOSITORY / 'proto'}",
        f"--python_out={output}",
    ]
    subprocess.run([*tools, *arguments, f"--grpc_python_out={output}", *PROTO_FILES], check=True)


def make_imports_absolute(output: Path) -> None:
    """protoc writes imports relative to the proto root; the stubs live below `penstock_server.pb`."""
    for stub in [*output.rglob("*_pb2.py"), *output.rglob("*_pb2_grpc.py")]:
        text = stub.read_text()
        stub.write_text(
            re.sub(r"^from ((?:shard|penstock)\.[.\w]*) import", r"from penstock_server.pb.\1 import", text, flags=re.M)
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=REPOSITORY / "server" / "penstock_server" / "pb")
    output: Path = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    protoc(output)
    make_imports_absolute(output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
