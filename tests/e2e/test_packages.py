"""What is shipped: wheels from the checkout and from the sdists, installed in an empty environment and served from; and
the image's steps, as far as they go without Docker."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

import httpx
import pytest
from harness import docker
from harness.client import body, generate
from harness.launcher import ROOT, environment, eventually

# Where cargo's output is kept: a wheel's build starts from it.
TARGET = os.environ.get("CARGO_TARGET_DIR", str(ROOT / "target"))
OURS = ("penstock", "__editable__", "_penstock", "_penstock_kernels")


def run(*command: str | Path, cwd: Path = ROOT, **variables: str) -> str:
    env = os.environ | {"CARGO_TARGET_DIR": TARGET} | variables
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def empty_environment(folder: Path) -> Path:
    """A virtual environment without our packages. torch and what else we need is borrowed from the one of the tests:
    fetching it again takes minutes and shows nothing."""
    run(sys.executable, "-m", "venv", folder)
    borrowed = folder / "borrowed"
    borrowed.mkdir()
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if not path.name.lower().startswith(OURS) and path.name not in ("pip", "__pycache__"):
            (borrowed / path.name).symlink_to(path)
    [packages] = (folder / "lib").glob("python3*/site-packages")
    (packages / "borrowed.pth").write_text(f"{borrowed}\n")
    return folder / "bin"


class Served:
    """A launcher of an installed package, without anything of the checkout in its environment."""

    def __init__(self, program: Path, tmp: Path, **variables: str) -> None:
        without = {"PYTHONPATH", "PENSTOCK_PYTHON", "PENSTOCK_LAUNCHER"}
        env = {name: value for name, value in environment(tmp).items() if name not in without}
        self.log = tmp / "log"
        output = self.log.open("w")
        self.process = subprocess.Popen(
            [program, "--hostname", "127.0.0.1"],
            env=env | {"PORT": "0"} | variables,
            cwd=tmp,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        output.close()

    def __enter__(self) -> str:
        """The base URL."""
        eventually(lambda: "Connected" in self.text() or self.process.poll() is not None, 120, "the server is ready")
        assert self.process.poll() is None, self.text()
        return "http://" + self.text().split("is served on http://")[1].split()[0]

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        code = self.process.wait(60)
        assert code == 0, self.text()

    def text(self) -> str:
        return self.log.read_text()


def check_installed(binaries: Path, tmp: Path) -> None:
    """Serves the bundled model; stubs need no torch; all versions are one."""
    version = run(binaries / "launcher", "--version", cwd=tmp).split()[1]
    installed = "import importlib.metadata as m; print(m.version('penstock'), m.version('penstock-kernels'))"
    assert run(binaries / "python", "-c", installed, cwd=tmp).split() == [version, version]
    stubs = "import sys; from penstock_server.pb.penstock.v1 import generation_pb2_grpc as g; assert 'torch' not in "
    place = run(binaries / "python", "-c", f"{stubs} sys.modules; print(g.GenerationStub and g.__file__)", cwd=tmp)
    assert place.startswith(str(binaries.parent))
    with Served(binaries / "launcher", tmp) as url:
        answer = generate(url, body("Once upon a time", 8))
        assert len(answer.ids) == 8
        assert httpx.get(f"{url}/info").json()["version"] == version


def test_pip_installs_both_from_the_checkout_and_serves(tmp_path):
    binaries = empty_environment(tmp_path / "venv")
    run(binaries / "pip", "install", "--quiet", "./kernels", ".")
    check_installed(binaries, tmp_path)


@pytest.mark.slow
def test_wheels_of_the_sdists_serve(tmp_path):
    build = [sys.executable, "-m", "maturin", "sdist", "--out", tmp_path / "sdists"]
    run(*build)
    binaries = empty_environment(tmp_path / "venv")
    shutil.copytree(ROOT / "kernels", tmp_path / "kernels")
    backend = "import sys; from setuptools import build_meta as b; b.build_sdist(sys.argv[1])"
    run(sys.executable, "-c", backend, tmp_path / "sdists", cwd=tmp_path / "kernels")
    sdists = sorted((tmp_path / "sdists").glob("*.tar.gz"))
    assert len(sdists) == 2
    for path in sdists:
        with tarfile.open(path) as archive:
            check_contents(path.name, archive.getnames())
    run(binaries / "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path / "wheels", *sdists, cwd=tmp_path)
    run(binaries / "pip", "install", "--quiet", *(tmp_path / "wheels").glob("*.whl"), cwd=tmp_path)
    check_installed(binaries, tmp_path)


def check_contents(archive: str, names: list[str]) -> None:
    parts = {part for name in names for part in Path(name).parts}
    assert not parts & {"target", ".venv", "__pycache__", ".git", ".hypothesis"}, archive
    if not archive.startswith("penstock_kernels"):
        assert {"LICENSE", "README.md", "Cargo.lock", "proto", "demo_model"} <= parts


def test_the_image_has_what_tgis_has():
    assert docker.variables().items() >= {"HF_HOME": "/data", "PORT": "80"}.items()
    last = docker.instructions()[-1]
    assert (last.name, json.loads(last.text)) == ("ENTRYPOINT", ["launcher"])
    ignored = {line.rstrip("/") for line in (ROOT / ".dockerignore").read_text().splitlines()}
    needed = ["Cargo.toml", "Cargo.lock", "launcher", "router", "proto", "server", "kernels", "pyproject.toml"]
    for name in [*needed, "rust-toolchain.toml", "README.md", "LICENSE"]:
        assert (ROOT / name).exists()
        assert name not in ignored
    rust = (ROOT / "rust-toolchain.toml").read_text()
    image = next(step.text for step in docker.instructions() if step.name == "FROM").split("rust:")[1].split("-")[0]
    assert f'channel = "{image}' in rust, "the image's Rust is the one that is tested"


@pytest.mark.slow
def test_the_images_steps_make_a_server(tmp_path):
    """Its wheels, its link, its variables and its entrypoint, with other folders for /build, /wheels and /data."""
    wheels = tmp_path / "wheels"
    build = docker.command("pip wheel").replace("/build", str(tmp_path / "build")).replace("/wheels", str(wheels))
    run("bash", "-ec", build)
    binaries = empty_environment(tmp_path / "venv")
    run(binaries / "pip", "install", "--quiet", *wheels.glob("*.whl"), cwd=tmp_path)
    run("bash", "-ec", docker.command("ln -s"), PATH=f"{binaries}:{os.environ['PATH']}")
    variables = docker.variables() | {"HF_HOME": str(tmp_path / "data"), "PORT": "0"}
    with Served(binaries / "text-generation-launcher", tmp_path, **variables) as url:
        assert len(generate(url, body("Once", 4)).ids) == 4
