"""The device thread: what escapes a job ends the process, since whoever waits for the thread would wait for ever."""

import subprocess
import sys

import pytest

from penstock_server import exit_codes
from penstock_server.device_thread import DeviceThread

PROGRAM = """
import threading
from penstock_server.device_thread import DeviceThread
def job():
    raise RuntimeError("a bug in a job")
DeviceThread().submit(job)
threading.Event().wait(60)
"""


def test_an_escaped_error_is_logged_and_ends_the_process():
    command = [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path}\n{PROGRAM}"]
    process = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert process.returncode == exit_codes.FAILED
    assert "a bug in a job" in process.stderr
    assert "the device thread failed" in process.stderr


def test_an_error_of_a_call_reaches_the_caller():
    thread = DeviceThread()
    with pytest.raises(ZeroDivisionError):
        thread.call(lambda: 1 // 0)
    assert thread.call(lambda: 3) == 3
    thread.close()
