"""What a user can do something about: the command line shows its text as one line, without a traceback."""

from __future__ import annotations


class UserError(Exception):
    """Base of all such errors. The text says what is wrong and what to do; it never holds a PAN or a
    password."""

    exit_code = 1
