"""`python -m penstock_server`: one shard. Its config is one JSON object on standard input; see `config.py`.

Ends with one of `exit_codes`. SIGTERM drains; SIGINT is the launcher's to handle, which then sends SIGTERM.
"""

import os
import signal
import sys
from types import FrameType

from penstock_server.parent import die_with_parent


def leave(number: int, frame: FrameType | None) -> None:
    """SIGTERM before there is anything to drain."""
    os._exit(0)


def main() -> int:
    # First of all, because a parent that died before this call is noticed only by the comparison of pids below.
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, leave)

    from penstock_server import exit_codes, models
    from penstock_server.config import ShardConfig
    from penstock_server.sizes import check_config

    try:
        config = ShardConfig.from_json(sys.stdin.read())
        check_config(config)
    except (ValueError, TypeError) as error:
        print(f"shard config: {error}", file=sys.stderr, flush=True)
        return exit_codes.BAD_CONFIG
    if os.getppid() != config.parent_pid:
        print(f"the parent process {config.parent_pid} is gone", file=sys.stderr, flush=True)
        return exit_codes.ABANDONED

    try:
        models.architecture(config.model_path)
    except ValueError as error:
        print(error, file=sys.stderr, flush=True)
        return exit_codes.BAD_MODEL

    # torch takes a second to import: everything cheap that can go wrong has gone wrong by now.
    # OpenMP reads these when torch loads it. Workers that spin at its barriers starve the one that they wait for as
    # soon as anything else wants a core: on a busy 2-core machine steps of 2.5 ms took 24 to 860 ms. A spin of
    # microseconds bridges the gap between two operations: without it a step on an idle machine takes 1.3 to 1.6 times
    # as long, and ten times more spinning gains nothing.
    os.putenv("OMP_WAIT_POLICY", "passive")
    os.putenv("GOMP_SPINCOUNT", "2000")
    from penstock_server.shard import run

    return run(config)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # A device thread that hangs in a collective must not keep the process alive, nor torch's teardown slow it down.
    os._exit(code)
