"""Logging of a shard: one line per event on standard error, as text or as one JSON object, marked with the rank."""

import json
import logging
import sys
from datetime import UTC, datetime

LEVELS = ("debug", "info", "warning", "error")


class TextFormatter(logging.Formatter):
    """`<time> <LEVEL> rank=<rank> <message>`, and a traceback where there is one."""

    def __init__(self, rank: int) -> None:
        super().__init__(f"%(asctime)s %(levelname)s rank={rank} %(message)s")


class JsonFormatter(logging.Formatter):
    """One object per line, which is never broken by what the message holds. `extra={"fields": ...}` adds to it."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self._rank = rank

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = {
            "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname,
            "message": record.getMessage(),
            "target": record.name,
            "rank": self._rank,
        }
        fields |= getattr(record, "fields", {})
        if record.exc_info:
            fields["error"] = self.formatException(record.exc_info)
        return json.dumps(fields)


def set_up(level: str, json_output: bool, rank: int) -> None:
    """Raises ValueError for a level that is none of `LEVELS`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(rank) if json_output else TextFormatter(rank))
    logging.getLogger().handlers[:] = [handler]
    # Libraries say little that is of use below a warning.
    logging.getLogger().setLevel(logging.WARNING)
    logging.captureWarnings(True)
    set_level(level)


def set_level(level: str) -> None:
    """Raises ValueError for a level that is none of `LEVELS`."""
    if level not in LEVELS:
        raise ValueError(f"log_level {level!r} is not one of {', '.join(LEVELS)}")
    logging.getLogger("penstock_server").setLevel(level.upper())
