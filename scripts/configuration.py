"""Writes docs/configuration.md: every setting of mini_visa/settings.py, which is where they are explained."""

from __future__ import annotations

import ast
import inspect
import re
from itertools import pairwise
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from mini_visa import settings as module
from mini_visa.settings import Settings

PAGE = Path(__file__).parent.parent / "docs" / "configuration.md"
PREFACE = """# Configuration

Every setting is an environment variable. Names end with their unit: `_s` seconds, `_ms` milliseconds,
`_h` hours, `_bytes` bytes. A wrong value stops the program at its start, with the variable's name.
A container may be given what is secret as a file instead: `/run/secrets/mini_visa_database_url` is
`MINI_VISA_DATABASE_URL`. A variable counts before a file.

This page is written by `make docs` from `mini_visa/settings.py`; a test compares the two.
"""


def page() -> str:
    """The whole page."""
    parts = [PREFACE]
    for title, names in sections().items():
        parts.append(f"\n## {title[0].upper()}{title[1:]}\n\n| variable | default | |\n|---|---|---|\n")
        parts += [row(name) for name in names]
    return "".join(parts)


def sections() -> dict[str, list[str]]:
    """The settings by the comment lines ("# -- Kafka ---") that group them in the source."""
    found: dict[str, list[str]] = {}
    title = ""
    for line in inspect.getsource(Settings).splitlines():
        if heading := re.match(r"    # -- (.+?) -+$", line):
            title = heading[1]
            found[title] = []
        elif (field := re.match(r"    (\w+): ", line)) and field[1] in Settings.model_fields:
            found[title].append(field[1])
    return found


def explanations() -> dict[str, str]:
    """The docstring under each setting."""
    body = next(
        node for node in ast.parse(inspect.getsource(module)).body
        if isinstance(node, ast.ClassDef) and node.name == "Settings"
    ).body  # fmt: skip
    texts: dict[str, str] = {}
    for field, text in pairwise(body):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
        ):
            texts[field.target.id] = " ".join(str(text.value.value).split())
    return texts


def row(name: str) -> str:
    cells = (
        f"`MINI_VISA_{name.upper()}`",
        default(name),
        " ".join(filter(None, (explanations().get(name), allowed(name)))),
    )
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def default(name: str) -> str:
    field = Settings.model_fields[name]
    if field.default_factory is not None:
        return "`~/.local/share/mini-visa`" if name == "home" else "see there"
    value = field.default
    if value is None or value == "":
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def allowed(name: str) -> str:
    """The values it may have, as far as types and bounds say."""
    field = Settings.model_fields[name]
    choices = literal_choices(field.annotation)
    if choices:
        return "One of " + ", ".join(f"`{choice}`" for choice in choices) + "."
    bounds: dict[str, Any] = {}
    for constraint in field.metadata:
        for kind in ("ge", "gt", "le", "lt"):
            if (bound := getattr(constraint, kind, None)) is not None:
                bounds[kind] = bound
    low, high = bounds.get("ge", bounds.get("gt")), bounds.get("le", bounds.get("lt"))
    if low is None:
        return ""
    return f"From {low} to {high}." if high is not None else f"At least {low}."


def literal_choices(annotation: Any) -> tuple[str, ...]:
    if get_origin(annotation) is Literal:
        return tuple(str(choice) for choice in get_args(annotation))
    options = [option for option in get_args(annotation) if option is not NoneType]
    return literal_choices(options[0]) if len(options) == 1 else ()


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page())
