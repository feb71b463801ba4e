"""How such a process talks to the launcher: JSON lines, in on standard input, out on standard output.

Secrets come by the environment, never by an argument. Each line out is an object with an `event`; the last one is
`done` or `failed`. Standard error is for people: the launcher passes it on to the log.
"""

import json
import os
import sys
from collections.abc import Callable
from typing import Any

from penstock_server.parent import die_with_parent


class UnusableModelError(Exception):
    """The model cannot be served as it is named, now or later: exit code 3 of the launcher."""


class FailedError(Exception):
    """Something was in the way; a later try may succeed: exit code 1 of the launcher."""


# Whatever a library prints goes to the log instead.
_OUT = os.fdopen(os.dup(sys.stdout.fileno()), "w")
os.dup2(sys.stderr.fileno(), sys.stdout.fileno())


def report(event: str, **fields: Any) -> None:
    """Writes one line."""
    _OUT.write(json.dumps({"event": event, **fields}) + "\n")
    _OUT.flush()


def next_line() -> dict[str, Any] | None:
    """The launcher's next object; None when it has nothing more to say."""
    line = sys.stdin.readline()
    return json.loads(line) if line.strip() else None


def run(work: Callable[[dict[str, Any]], None]) -> None:
    """Reads the request, does the work and reports how it ended."""
    die_with_parent()
    request = next_line()
    if request is None or request.pop("parent_pid") != os.getppid():
        return
    try:
        work(request)
    except UnusableModelError as error:
        report("failed", unusable=True, message=str(error))
    except FailedError as error:
        report("failed", unusable=False, message=str(error))
    else:
        report("done")
