"""The end of a process that may no longer go on: at once, loudly, and with a non-zero exit code.

Restarting is the one recovery the kernel has: the next process fences this one, restores what Kafka has
committed, and goes on after it. Going on in a state that nobody knows is how money gets lost.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from typing import Final, NoReturn

from mini_visa.errors import UserError

log = logging.getLogger(__name__)

EXIT_POISONED: Final = 70
"""EX_SOFTWARE. A supervisor restarts on it."""
FLUSH_S: Final = 3.0
"""Logs get this long to be written: a full pipe must not keep a poisoned process alive."""


class Fatal(UserError):
    """The process must end. The text says what happened and what to do about it."""

    exit_code = EXIT_POISONED


def poison(where: str, error: BaseException) -> NoReturn:
    """End this process because of `error` in `where`."""
    deadline = threading.Timer(FLUSH_S, os._exit, (EXIT_POISONED,))
    deadline.daemon = True
    deadline.start()
    known = isinstance(error, UserError)
    log.critical(
        "%s: %s. This process ends now; a restart goes on after the last committed batch.",
        where,
        str(error) if known else f"{type(error).__name__}: {error}",
        exc_info=None if known else error,
    )
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(EXIT_POISONED)
