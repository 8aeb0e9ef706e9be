"""The command line, `mini-visa`: a module for each group of commands. Everything heavy is imported by the
command that needs it."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import typer
from pydantic import ValidationError

from mini_visa.cli import (
    broker,
    events,
    keys,
    letters,
    migrate,
    payments,
    readmodel,
    rules,
    run,
    settlement,
    topics,
)
from mini_visa.errors import UserError
from mini_visa.settings import settings

EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

app = typer.Typer(
    name="mini-visa",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="A small card network: authorizations through Kafka, exactly once.\n\n"
    "Start with `mini-visa demo` (it shows everything at work) or `mini-visa up` (it runs until Ctrl-C). "
    "If something does not work: `mini-visa doctor`. Settings are environment variables, MINI_VISA_...; "
    "docs/configuration.md lists them.",
)

RUN, USE, RUN_PARTS = "Run everything", "Use it", "Run and look at its parts"

app.command(rich_help_panel=RUN)(run.up)
app.command(rich_help_panel=RUN)(run.demo)
app.command(rich_help_panel=RUN)(run.doctor)
app.command(rich_help_panel=RUN_PARTS)(run.worker)
app.command("clearing-house", rich_help_panel=RUN_PARTS)(run.clearing_house)
app.command(rich_help_panel=RUN_PARTS)(run.gateway)
app.command(rich_help_panel=RUN_PARTS)(topics.lag)
app.command(rich_help_panel=USE)(payments.authorize)
app.command(rich_help_panel=USE)(payments.load)
app.command(rich_help_panel=RUN_PARTS)(events.audit)
app.command(rich_help_panel=USE)(events.sagas)
app.command(rich_help_panel=USE)(events.replay)

app.add_typer(payments.account_commands, name="accounts", rich_help_panel=USE)
app.add_typer(payments.commands, name="payments", rich_help_panel=USE)
app.add_typer(events.commands, name="events", rich_help_panel=USE)
app.add_typer(settlement.commands, name="settlement", rich_help_panel=USE)
app.add_typer(rules.commands, name="rules", rich_help_panel=USE)
app.add_typer(broker.commands, name="broker", rich_help_panel=RUN_PARTS)
app.add_typer(topics.commands, name="topics", rich_help_panel=RUN_PARTS)
app.add_typer(migrate.commands, name="migrate", rich_help_panel=RUN_PARTS)
app.add_typer(letters.commands, name="dead-letters", rich_help_panel=RUN_PARTS)
app.add_typer(readmodel.commands, name="readmodel", rich_help_panel=RUN_PARTS)
app.add_typer(keys.commands, name="keys", rich_help_panel=RUN_PARTS)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs a command and exits: 0 done, 1 an error the user can act on, 2 wrong usage or setting."""
    # Without a handler of its own a library's warning would go to the terminal beside our error.
    logging.getLogger("aiokafka").addHandler(logging.NullHandler())
    try:
        app(args=None if arguments is None else list(arguments))
    except UserError as error:
        _fail(str(error), error.exit_code)
    except ValidationError as invalid:
        _fail("\n".join(_setting_errors(invalid)), EXIT_USAGE)
    except BrokenPipeError:  # the reader (`| head`) has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        if not _concerns_home(error):
            raise
        _fail(f"{error.filename}: {error.strerror}. Set MINI_VISA_HOME to a directory of yours with room.", 1)
    except Exception as error:
        if type(error).__module__ != "aiokafka.errors":  # known without importing it for every command
            raise
        _fail(f"Kafka refused or went away: {type(error).__name__}: {error}", 1)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    sys.exit(0)


def _concerns_home(error: OSError) -> bool:
    """Whether a file or directory of MINI_VISA_HOME, or one above it, could not be used."""
    if not isinstance(error.filename, str | os.PathLike):
        return False
    path, home = Path(error.filename), settings().home
    return path.is_relative_to(home) or home.is_relative_to(path)


def _setting_errors(invalid: ValidationError) -> list[str]:
    """A line for each wrong setting, without its value: it could be a password."""
    return [
        f"MINI_VISA_{'_'.join(str(part) for part in error['loc']).upper()}: {error['msg']}"
        for error in invalid.errors()
    ]


def _fail(text: str, code: int) -> NoReturn:
    sys.stderr.write(f"mini-visa: {text}\n")
    sys.exit(code)
