"""Downloads that break off, and a disk that is too small. What a user sees of the rest is in tests/e2e/test_hub.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

from harness.hub import FakeHub, Repository

SERVER = Path(__file__).parents[1]
# huggingface_hub writes pieces of 10 MB.
MEGABYTE = 1 << 20
WEIGHTS = os.urandom(MEGABYTE) * 50
DISK_OF_1_MB = """
import shutil, sys
shutil.disk_usage = lambda path: shutil._ntuple_diskusage(1 << 30, 1 << 30, 1 << 20)
from penstock_server.prepare import child, hub
child.run(hub.main)
"""


def download(hub: FakeHub, home: Path, *program: str) -> list[dict[str, object]]:
    """The events of one download of all."""
    request = {"model_id": "org/m", "revision": None, "cache_dir": None, "parent_pid": os.getpid()}
    done = subprocess.run(
        [sys.executable, *(program or ("-m", "penstock_server.prepare.hub"))],
        input=json.dumps(request) + "\n{}\n",
        env=os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "PYTHONPATH": str(SERVER)},
        capture_output=True,
        text=True,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def repository(**options: int) -> Repository:
    return Repository({"config.json": b"{}", "model.safetensors": WEIGHTS}, **options)


def test_a_broken_download_goes_on_where_it_ended(tmp_path):
    with FakeHub({"org/m": repository(cuts=1)}) as hub:
        events = download(hub, tmp_path)
        assert hub.downloads.count("model.safetensors") == 2
        # Half of it came, of which at least 20 MB were whole pieces.
        assert hub.bytes_sent["model.safetensors"] <= len(WEIGHTS) + 10 * MEGABYTE
    assert events[-1] == {"event": "done"}
    assert events[-2] == {"event": "progress", "done": len(WEIGHTS), "total": len(WEIGHTS)}
    folder = Path(str(events[0]["folder"]))
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    # The hub's own layout: a snapshot of links into the blobs.
    assert (folder / "model.safetensors").readlink().parts[:3] == ("..", "..", "blobs")


def test_a_disk_that_is_too_small_is_noticed_before_anything_is_written(tmp_path):
    with FakeHub({"org/m": repository()}) as hub:
        events = download(hub, tmp_path, "-c", DISK_OF_1_MB)
        assert hub.downloads == ["config.json"]
    assert events[-1]["event"] == "failed"
    assert events[-1]["unusable"] is False
    assert "needs 0.1 GB more and" in str(events[-1]["message"])
