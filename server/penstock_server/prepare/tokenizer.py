"""`python -m penstock_server.prepare.tokenizer`: makes a `tokenizer.json` for a model folder that has none.

In: `{"folder", "parent_pid"}`. Out: `tokenizer` (path), then `done` or `failed`. transformers converts; the file goes
into the cache under a name made from the bytes of its sources, never into the model's folder.
"""

import hashlib
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from penstock_server.prepare import child

SOURCES = (
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
# The part of them without which there is no vocabulary.
VOCABULARIES = (*SOURCES[:4], "vocab.txt")


def main(request: dict[str, Any]) -> None:
    """The whole exchange."""
    folder = Path(request["folder"])
    sources = [folder / name for name in SOURCES if (folder / name).is_file()]
    if not any(path.name in VOCABULARIES for path in sources):
        raise child.UnusableModelError(
            f"{folder} has no tokenizer.json, nor anything that one could be made of: {', '.join(VOCABULARIES)}"
        )
    target = cache_folder() / f"{digest(sources)}.json"
    if not target.is_file():
        print(f"making a tokenizer.json from {', '.join(path.name for path in sources)}", file=sys.stderr, flush=True)
        convert(folder, target)
    child.report("tokenizer", path=str(target))


def digest(sources: list[Path]) -> str:
    """Of names and contents."""
    whole = hashlib.sha256()
    for path in sources:
        data = path.read_bytes()
        whole.update(f"{path.name} {len(data)}\n".encode())
        whole.update(data)
    return whole.hexdigest()


def cache_folder() -> Path:
    """`penstock/tokenizers` in the hub's cache, or in TMPDIR where that cannot be written."""
    home = os.environ.get("HF_HOME") or "~/.cache/huggingface"
    for parent in (Path(home).expanduser(), Path(tempfile.gettempdir())):
        folder = parent / "penstock" / "tokenizers"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if parent.is_absolute() and os.access(folder, os.W_OK):
            return folder
    raise child.FailedError("no folder can be written for a converted tokenizer: set HF_HOME or TMPDIR to one")


def convert(folder: Path, target: Path) -> None:
    """Writes the target in one go: another instance may look for it meanwhile."""
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise child.UnusableModelError(
            f"{folder} has no tokenizer.json, and transformers, which could make one, is not installed ({error}): "
            "`pip install transformers sentencepiece protobuf`"
        ) from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever a vocabulary's parser raises
        first = str(error).strip().splitlines() or [type(error).__name__]
        raise child.UnusableModelError(
            f"{folder} has no tokenizer.json, and transformers cannot make one of its files: {first[0]}"
        ) from error
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise child.UnusableModelError(
            f"{folder} has no tokenizer.json, and its {type(tokenizer).__name__} has no fast form to make one of"
        )
    with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as partial:
        partial.write(backend.to_str().encode())
    Path(partial.name).rename(target)


if __name__ == "__main__":
    child.run(main)
    sys.stdout.flush()
    os._exit(0)
