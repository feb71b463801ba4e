"""A trace of a few steps with torch's profiler, asked for by `Control`."""

import logging
import os
from pathlib import Path

from torch.profiler import profile

logger = logging.getLogger(__name__)


class Recording:
    """Starts at once; lives on the thread that runs the steps."""

    def __init__(self, num_steps: int, folder: Path) -> None:
        self._steps_left = num_steps
        self._path = folder / f"shard-{os.getpid()}-trace.json"
        self._profiler = profile()
        self._profiler.start()

    def step_ended(self) -> bool:
        """Counts a step. Returns whether the trace is written, or could not be: the recording is over."""
        self._steps_left -= 1
        if self._steps_left:
            return False
        self._profiler.stop()
        try:
            self._profiler.export_chrome_trace(str(self._path))
        except (OSError, RuntimeError) as error:
            logger.warning("cannot write the trace %s: %s", self._path, error)
        else:
            logger.info("wrote the trace %s", self._path)
        return True
