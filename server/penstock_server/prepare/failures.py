"""What huggingface_hub raises, in words that say what to do."""

import errno
from pathlib import Path

from huggingface_hub import errors

try:
    import httpx2 as httpx
except ModuleNotFoundError:  # huggingface_hub before version 2
    import httpx  # type: ignore[no-redef]

from penstock_server.prepare.child import FailedError, UnusableModelError

# What a broken exchange with a hub, or with the disk, is.
EXCHANGE_ERRORS = (httpx.HTTPError, OSError)
TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_API_TOKEN")


def explain(error: Exception, model_id: str, revision: str, endpoint: str, token: str | None) -> Exception:
    """The error to raise in its place."""
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    unusable = _unusable(error, status, model_id, revision, endpoint, token)
    if unusable is not None:
        return UnusableModelError(unusable)
    if status is not None:
        return FailedError(f"{endpoint} answered with status {status} for {model_id}; try again later")
    return FailedError(_of_the_machine(error, model_id, endpoint))


def _unusable(
    error: Exception, status: int | None, model_id: str, revision: str, endpoint: str, token: str | None
) -> str | None:
    if isinstance(error, errors.GatedRepoError):
        told = "the given token's account has no access" if token else "no token was given"
        return (
            f"{model_id} is gated and {told}: accept its terms at {endpoint}/{model_id} and set HF_TOKEN to a "
            "token of the account that did"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{model_id} has no revision {revision!r}; --revision takes a branch, a tag or a commit of it"
    if status == 401 and token:
        return f"{endpoint} does not accept the token (401): it may be wrong or expired; set HF_TOKEN to a new one"
    if isinstance(error, errors.RepositoryNotFoundError) or status == 401:
        return (
            f"there is neither a folder {model_id} here nor a model of that name at {endpoint} ({status}); if it is "
            f"private, set HF_TOKEN to {'another token, one' if token else 'a token'} that may read it"
        )
    if status == 403:
        return f"{endpoint} forbids reading {model_id} (403): set HF_TOKEN to a token that has the right to"
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
        return f"{model_id} at revision {revision!r} lacks a file: {_first_line(error)}"
    return None


def _of_the_machine(error: Exception, model_id: str, endpoint: str) -> str:
    number, filename = (error.errno, error.filename) if isinstance(error, OSError) else (None, None)
    if number == errno.ENOSPC:
        return f"the disk is full while fetching {model_id}; set HF_HOME to a folder on another one"
    if number in (errno.EACCES, errno.EROFS, errno.EPERM) and filename:
        folder = Path(filename).parent
        return f"cannot write {folder} while fetching {model_id}; set HF_HOME to a folder that this user may write"
    why = _first_line(error)
    return f"cannot fetch {model_id} from {endpoint}: {why}; check the network, HF_ENDPOINT and the proxy's variables"


def _first_line(error: BaseException) -> str:
    """An error's own words; its cause's where it has none."""
    text = str(error).strip() or str(error.__cause__ or "").strip() or type(error).__name__
    return text.splitlines()[0]


def is_passing(error: Exception) -> bool:
    """Whether the same request may succeed in a moment: a broken connection, an overloaded hub."""
    if isinstance(error, errors.HfHubHTTPError):
        return error.response.status_code == 429 or error.response.status_code >= 500
    # A file that came out shorter than announced, of which huggingface_hub says so with a plain OSError.
    cut = isinstance(error, OSError) and error.errno is None
    return cut or is_unreachable(error)


def is_unreachable(error: Exception) -> bool:
    """Whether there was no answer."""
    return isinstance(error, httpx.TransportError)
