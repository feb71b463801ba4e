"""`python -m penstock_server.prepare.hub`: brings a model of a hub into the cache.

In: `{"model_id", "revision", "cache_dir", "parent_pid"}`; after `metadata`, `{}` for "fetch the weights" or the end of
input for "there are none". Out: `metadata` (folder, commit), `progress` (bytes done and total), `done` or `failed`.

First come config and tokenizer, so that a model that cannot be served is refused before its weights are fetched; then
the weight files that the index names and no others. What was fetched stays: a later start goes on where this one ended.
"""

import json
import os
import shutil
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

# Before huggingface_hub reads them: bars are for terminals, and nothing is sent that was not asked for.
for name in [name for name, value in os.environ.items() if name.startswith("HF_") and not value]:
    del os.environ[name]  # empty is unset, here as for flags
os.environ |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}

from huggingface_hub import HfApi, constants, errors, hf_hub_download  # noqa: E402

from penstock_server.prepare import child  # noqa: E402
from penstock_server.prepare.failures import (  # noqa: E402
    EXCHANGE_ERRORS,
    TOKEN_VARIABLES,
    explain,
    is_passing,
    is_unreachable,
)

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
METADATA = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    INDEX,
)
# Files at a time; more do not make one connection's hub faster.
WORKERS = 4
# Seconds before each further try of a file.
RETRIES = (1, 2, 4, 8)
PROGRESS_INTERVAL_S = 0.5
# For what a hub says of a model; its files have timeouts of their own, on every piece.
ANSWER_TIMEOUT_S = 30


class Download:
    """One model at one revision."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.model_id: str = request["model_id"]
        self.revision: str = request["revision"] or constants.DEFAULT_REVISION
        self.token = next((os.environ[name] for name in TOKEN_VARIABLES if os.environ.get(name)), None)
        self.cache = Path(request["cache_dir"] or constants.HF_HUB_CACHE)
        if not self.cache.is_absolute() or str(self.cache).startswith("/~"):
            raise child.FailedError("there is no home folder to keep models in: set HF_HOME to a folder")
        self.sizes: dict[str, int] = {}
        self.folder = Path()
        self.commit = ""

    def metadata(self) -> None:
        """Fetches what describes the model; finds it in the cache where the hub is not to be asked or cannot be."""
        if constants.is_offline_mode():
            self._take_cached("HF_HUB_OFFLINE is set")
            return
        try:
            info = HfApi(token=self.token).model_info(
                self.model_id, revision=self.revision, files_metadata=True, timeout=ANSWER_TIMEOUT_S
            )
        except EXCHANGE_ERRORS as error:
            if not is_unreachable(error):
                raise
            print(f"cannot reach {constants.ENDPOINT} ({error}): looking into the cache", file=sys.stderr, flush=True)
            self._take_cached(f"{constants.ENDPOINT} cannot be reached ({error})")
            return
        self.commit = info.sha or ""
        self.sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
        if METADATA[0] not in self.sizes:
            raise child.UnusableModelError(f"{self.model_id} at revision {self.revision!r} has no {METADATA[0]}")
        # By the revision's name, which leaves a note of its commit in the cache: an offline start goes by that.
        self.folder = Path(self._fetch(METADATA[0], self.revision)).parent
        for name in METADATA[1:]:
            if name in self.sizes:
                self._fetch(name, self.folder.name)
        self.commit = self.folder.name

    def _take_cached(self, why: str) -> None:
        try:
            config = hf_hub_download(
                self.model_id, METADATA[0], revision=self.revision, cache_dir=self.cache, local_files_only=True
            )
        except errors.LocalEntryNotFoundError:
            text = (
                f"{why}, and {self.model_id} at revision {self.revision!r} is not in the cache {self.cache}, nor is "
                "there a folder of that name"
            )
            if constants.is_offline_mode():
                raise child.UnusableModelError(f"{text}: fetch it once without HF_HUB_OFFLINE") from None
            raise child.FailedError(text) from None
        self.folder = Path(config).parent
        self.commit = self.folder.name

    def weights(self) -> None:
        """Fetches the files that the index names, or the only one. Those of the cache stay as they are."""
        if not self.sizes:
            return  # from the cache: the launcher looks at what is there
        missing = [name for name in self._weight_files() if not (self.folder / name).exists()]
        total = sum(self.sizes[name] for name in missing)
        self._check_space(total)
        with ThreadPoolExecutor(WORKERS) as pool:
            futures = [pool.submit(self._fetch, name, self.commit) for name in missing]
            try:
                self._follow(futures, missing, total)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _weight_files(self) -> list[str]:
        if INDEX in self.sizes:
            names = sorted(set(json.loads((self.folder / INDEX).read_text())["weight_map"].values()))
        else:
            names = [SINGLE]
        for name in names:
            # The launcher has judged the index's names; a name of two parts would be another file than the one meant.
            if name not in self.sizes or Path(name).name != name:
                raise child.UnusableModelError(
                    f"{self.model_id} at revision {self.revision!r} has no {name}; only safetensors are served, and it "
                    f"has: {', '.join(sorted(self.sizes)[:20])}"
                )
        return names

    def _check_space(self, needed: int) -> None:
        needed -= self._partial_bytes()
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise child.FailedError(
                f"{self.model_id} needs {needed / 1e9:.1f} GB more and {self.cache} has {free / 1e9:.1f} GB free: make "
                "room, or set HF_HOME to a folder on another disk"
            )

    def _follow(self, futures: list[Future[str]], names: list[str], total: int) -> None:
        running = set(futures)
        while running:
            ended, running = wait(running, timeout=PROGRESS_INTERVAL_S, return_when="FIRST_EXCEPTION")
            for future in ended:
                future.result()
            there = sum(self.sizes[name] for name in names if (self.folder / name).exists())
            child.report("progress", done=min(there + self._partial_bytes(), total), total=total)

    def _partial_bytes(self) -> int:
        """Of files that are not whole yet; they lie beside the whole ones."""
        blobs = self.folder.parent.parent / "blobs"
        return sum(path.stat().st_size for path in blobs.glob("*.incomplete") if path.exists())

    def _fetch(self, name: str, revision: str) -> str:
        """The path of one file. Goes on where an earlier try was cut off."""
        for pause in (*RETRIES, None):
            try:
                return hf_hub_download(self.model_id, name, revision=revision, cache_dir=self.cache, token=self.token)
            except Exception as error:
                if pause is None or not is_passing(error):
                    raise
                print(f"{name}: {error}; trying again in {pause} s", file=sys.stderr, flush=True)
                time.sleep(pause)
        raise AssertionError


def main(request: dict[str, Any]) -> None:
    """The whole exchange."""
    download = Download(request)
    try:
        download.metadata()
        child.report("metadata", folder=str(download.folder), commit=download.commit)
        if child.next_line() is not None:
            download.weights()
    except EXCHANGE_ERRORS as error:
        raise explain(error, download.model_id, download.revision, constants.ENDPOINT, download.token) from error
    except errors.HFValidationError as error:
        raise child.UnusableModelError(f"--model-id {download.model_id!r} is no name of a hub: {error}") from error


if __name__ == "__main__":
    child.run(main)
    sys.stdout.flush()
    os._exit(0)  # threads that still wait for a hub must not keep the process
