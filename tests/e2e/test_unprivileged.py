"""As the strictest containers run it: no root, no name for its user, no HOME, nothing writable but TMPDIR, and 64 MB of
shared memory. In namespaces of its own, which takes root to set up."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from harness.client import body, generate
from harness.launcher import LAUNCHER, ROOT, eventually
from harness.models import integer_answer, integer_model
from harness.optional import need

USER = 12345
# `$1`: TMPDIR. `$2`: this Python's folder. `$3`: a folder above it that only root may enter, or nothing. Then the rest.
SCRIPT = """
set -e
mount --make-rprivate /
mount -t tmpfs -o size=64m tmpfs /dev/shm
tmp=$1 python=$2 closed=$3
shift 3
mount --bind "$tmp" "$tmp"
if [ -n "$closed" ]; then
    mount --bind "$python" /mnt
    mount -t tmpfs -o mode=755 tmpfs "$closed"
    mkdir -p "$python"
    mount --move /mnt "$python"
    mount -o remount,ro "$closed"
fi
mount -o remount,bind,ro /
exec setpriv --reuid %d --regid %d --clear-groups --no-new-privs "$@"
""" % (USER, USER)  # noqa: UP031 - braces are the shell's


def closed_parent(folder: Path) -> Path | None:
    """The topmost folder on the way that others may not enter."""
    ways = [*reversed(folder.parents), folder]
    return next((way for way in ways if not way.stat().st_mode & 0o001), None)


def why_not() -> str:
    if os.geteuid() != 0:
        return "only root can set this up"
    if not all(map(shutil.which, ("unshare", "setpriv", "mount"))):
        return "util-linux is not installed"
    tried = subprocess.run(
        ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, check=False
    )
    if tried.returncode != 0:
        return "this machine does not let root mount"
    return "the checkout lies where only root may go" if closed_parent(ROOT) else ""


@pytest.fixture
def place():
    """A folder that any user can reach, which pytest's own are not."""
    folder = Path(f"/var/tmp/penstock-test-{os.getpid()}")
    folder.mkdir(mode=0o755)
    yield folder
    shutil.rmtree(folder)


def test_it_serves(place):
    need("root", why_not())
    model, tmp = integer_model(place / "model"), place / "tmp"
    tmp.mkdir()
    os.chown(tmp, USER, USER)
    for path in [model, *model.iterdir()]:
        path.chmod(0o755 if path.is_dir() else 0o444)
    python = Path(sys.base_prefix)
    closed = str(closed_parent(python) or "")
    packages = f"{ROOT / 'server'}:{ROOT / 'kernels'}"
    variables = {"PATH": "/usr/bin:/bin", "TMPDIR": str(tmp), "PENSTOCK_PYTHON": sys.executable, "PYTHONPATH": packages}
    server = [str(LAUNCHER), "--model-id", str(model), "--num-shard", "2", "--port", "0", "--hostname", "127.0.0.1"]
    log = place / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            ["unshare", "--mount", "bash", "-c", SCRIPT, "-", str(tmp), str(python), closed, *server],
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        eventually(lambda: "Connected" in log.read_text() or process.poll() is not None, 120, "the server is ready")
        assert process.poll() is None, log.read_text()
        url = re.search(r"http://[\d.]+:\d+", log.read_text()).group()
        assert Path(f"/proc/{process.pid}").stat().st_uid == USER
        assert generate(url, body("hello", 12)).ids == integer_answer("hello", 12)
        assert httpx.get(f"{url}/health").status_code == 200
        family = [process.pid, *map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())]
        assert len(family) == 4
        addresses = {address for pid in family for address in listening(pid)}
        assert addresses
        assert addresses <= {"127.0.0.1", "::1"}, addresses
    finally:
        process.terminate()
        code = process.wait(60)
    assert code == 0, log.read_text()
    assert list(tmp.iterdir()) == []


LOOPBACK = {"0100007F": "127.0.0.1", "00000000000000000000000001000000": "::1"}


def listening(pid: int) -> set[str]:
    """The addresses on which a process listens for TCP; those that are not loopback as the kernel writes them."""
    sockets = {str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir() if path.is_symlink()}
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                address = fields[1].split(":")[0]
                found.add(LOOPBACK.get(address, address))
    return found
