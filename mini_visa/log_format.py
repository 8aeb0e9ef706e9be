"""How every process of the project logs: one line a record, on standard output, times in UTC."""

from __future__ import annotations

import logging
import logging.config
import time
from typing import Any

LINE = "%(asctime)s.%(msecs)03dZ %(levelname)-7s %(name)s: %(message)s"
QUIET = ("aiokafka", "faust", "mode", "aiohttp.access", "alembic")
"""Libraries whose every-day news is not ours: warnings and worse only, unless the level is debug."""


class OneLine(logging.Formatter):
    """A record is one line: line breaks of its text and traceback become " | "."""

    def __init__(self) -> None:
        super().__init__(LINE, "%Y-%m-%dT%H:%M:%S")
        self.converter = time.gmtime

    def format(self, record: logging.LogRecord) -> str:
        return " | ".join(line.strip() for line in super().format(record).splitlines() if line.strip())


def configuration(level: str) -> dict[str, Any]:
    """For `logging.config.dictConfig`, and for Faust's worker, which calls that itself."""
    quiet = level.upper() if level == "debug" else "WARNING"
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"()": "mini_visa.log_format.OneLine"}},
        "handlers": {
            "stdout": {"class": "logging.StreamHandler", "stream": "ext://sys.stdout", "formatter": "line"}
        },
        "root": {"level": level.upper(), "handlers": ["stdout"]},
        "loggers": {name: {"level": quiet} for name in QUIET},
    }


def configure(level: str) -> None:
    """`level`: debug, info, warning or error."""
    logging.config.dictConfig(configuration(level))
