"""One thread that runs jobs in order. On a CPU it owns torch: one thread, one team of OpenMP workers."""

import logging
import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from penstock_server import exit_codes

logger = logging.getLogger(__name__)

Value = TypeVar("Value")


class DeviceThread:
    """A daemon thread, so that a step that never ends cannot keep the process alive."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="device", daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[], None]) -> None:
        """Queues a job, which must not raise: that ends the process."""
        self._jobs.put(job)

    def call(self, function: Callable[[], Value]) -> Value:
        """Runs a function there, waits for it, and returns or raises what it did."""
        future: Future[Value] = Future()

        def job() -> None:
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

        self.submit(job)
        return future.result()

    def close(self) -> None:
        """Ends the thread after the jobs before it."""
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        try:
            while (job := self._jobs.get()) is not None:
                job()
        except BaseException:
            # Whoever waits for a later job would wait for ever.
            logger.exception("the device thread failed")
            logging.shutdown()
            os._exit(exit_codes.FAILED)
