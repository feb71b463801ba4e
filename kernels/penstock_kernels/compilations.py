"""Counts the Triton kernels that are compiled when none should be: a step that needs one waits for it.

A kernel that Triton finds in its cache on disk counts too: it takes milliseconds, and would take a second on a machine
without that cache.
"""

import logging
import sys
from typing import Any

logger = logging.getLogger(__name__)


class CompilationWatch:
    """Nothing is counted before `start`. Triton has one listener, so the last watch that was started counts."""

    def __init__(self) -> None:
        self._seen = 0
        self._taken = 0

    def start(self) -> None:
        """From here on. A process that has not imported triton by now runs none of its kernels, and is not made to."""
        if triton := sys.modules.get("triton"):
            triton.knobs.compilation.listener = self._listen

    def take(self) -> int:
        """How many since the last call."""
        new = self._seen - self._taken
        self._taken += new
        return new

    def _listen(self, *, src: Any, metadata: Any, metadata_group: Any, times: Any, cache_hit: bool) -> None:
        """Triton's `CompilationListener`."""
        self._seen += 1
        source = "read from the cache" if cache_hit else "compiled"
        logger.warning("kernel %s was %s while serving: the warm-up missed it", src.name, source)
