"""The direction of imports, as docs/architecture.md draws it: towards the domain, never back."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

LAYERS: tuple[tuple[str, frozenset[str]], ...] = (
    # package or module -> what of this project it may import; the longest match counts.
    ("mini_visa.errors", frozenset()),
    ("mini_visa.settings", frozenset()),
    ("mini_visa.log_format", frozenset()),
    ("mini_visa.domain", frozenset({"mini_visa.domain"})),
    ("mini_visa.topics", frozenset({"mini_visa.domain", "mini_visa.streams"})),
    ("mini_visa.broker", frozenset({"mini_visa.broker", "mini_visa.errors"})),
    (
        "mini_visa.kafka",
        frozenset(
            {
                "mini_visa.broker",
                "mini_visa.errors",
                "mini_visa.settings",
                "mini_visa.streams",
                "mini_visa.topics",
            }
        ),
    ),
    (
        "mini_visa.streams",
        frozenset(
            {
                "mini_visa.domain",
                "mini_visa.errors",
                "mini_visa.kafka",
                "mini_visa.log_format",
                "mini_visa.settings",
                "mini_visa.streams",
                "mini_visa.topics",
                "mini_visa.transactions",
            }
        ),
    ),
    ("tables", frozenset({"mini_visa.domain", "mini_visa.streams", "mini_visa.settings", "tables"})),
    (
        "agents",
        frozenset(
            {
                "agents",
                "mini_visa.clearing_house",
                "mini_visa.domain",
                "mini_visa.errors",
                "mini_visa.readmodel",
                "mini_visa.settings",
                "mini_visa.streams",
                "mini_visa.topics",
                "tables",
            }
        ),
    ),
    # The entrypoints stand on top and may use everything below.
    ("mini_visa.replay", frozenset({"mini_visa", "tables"})),
    ("mini_visa", frozenset({"mini_visa", "audit"})),
    # It trusts nobody.
    ("audit", frozenset({"audit"})),
)

MAY_IMPORT_FAUST = ("mini_visa.streams", "agents", "tables")
PURE = "mini_visa.domain"
IMPURE = frozenset(
    {
        "asyncio", "io", "logging", "os", "pathlib", "random", "secrets", "socket",
        "subprocess", "threading", "time", "uuid",
        "aiohttp", "aiokafka", "faust", "mode", "orjson", "prometheus_client", "rocksdict", "sqlalchemy",
    }
)  # fmt: skip
"""Clocks, randomness, input and output: a decision has none of them."""


def _sources() -> Iterator[tuple[str, Path]]:
    for package in ("mini_visa", "agents", "tables", "audit"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def _imports(module: str, source: str, *, is_package: bool = False) -> list[str]:
    """Full names of what a module imports, at the top and inside functions."""
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")[: -(node.level - is_package) or None]
                base = ".".join([*parents, base] if base else parents)
            found += [f"{base}.{alias.name}" for alias in node.names]
    return found


def _within(name: str, packages: Iterable[str]) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def violations(module: str, imported: Iterable[str]) -> list[str]:
    """What of `imported` the module `module` may not import, as sentences."""
    layer, allowed = max(
        ((name, allowed) for name, allowed in LAYERS if _within(module, [name])),
        key=lambda entry: len(entry[0]),
    )
    wrong: list[str] = []
    for name in imported:
        ours = _within(name, ("mini_visa", "agents", "tables", "audit", "tests"))
        if ours and layer != "mini_visa" and not _within(name, allowed):
            wrong.append(
                f"{module} imports {name}: {layer} may only import {', '.join(sorted(allowed)) or 'nothing'}"
            )
        if ours and _within(name, ("tests",)):
            wrong.append(f"{module} imports {name}: tests are not part of the program")
        if _within(name, ("faust", "mode")) and not _within(module, MAY_IMPORT_FAUST):
            wrong.append(f"{module} imports {name}: only {', '.join(MAY_IMPORT_FAUST)} know Faust")
        if _within(module, [PURE]) and _within(name, IMPURE):
            wrong.append(f"{module} imports {name}: the domain is pure")
    return wrong


def test_imports_point_towards_the_domain():
    wrong = [
        violation
        for module, path in _sources()
        for violation in violations(
            module, _imports(module, path.read_text(), is_package=path.name == "__init__.py")
        )
    ]
    assert not wrong, "\n".join(wrong)


def test_all_packages_are_looked_at():
    modules = [module for module, _ in _sources()]
    assert {"mini_visa.domain.money", "mini_visa.cli", "agents", "tables", "audit.auditor"} <= set(modules)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("mini_visa.domain.money", "from mini_visa.settings import Settings"),
        ("mini_visa.domain.money", "import mini_visa.streams.table"),
        ("mini_visa.domain.money", "def f():\n    from ..streams import table"),
        ("mini_visa.domain.money", "from time import time"),
        ("mini_visa.domain.money", "import aiokafka"),
        ("mini_visa.gateway.app", "import faust"),
        ("mini_visa.kafka", "from mode import Service"),
        ("mini_visa.streams.app", "from mini_visa.gateway import app"),
        ("mini_visa.streams.app", "from agents import risk"),
        ("tables.velocity", "from agents.risk import app"),
        ("agents.risk", "import mini_visa.gateway.app"),
        ("mini_visa.gateway.app", "from tests.unit import test_imports"),
        ("audit.accounts", "from mini_visa.domain.money import share"),
        ("agents.risk", "from audit.velocity import Recount"),
    ],
)
def test_an_import_in_the_wrong_direction_is_found(module, source):
    assert violations(module, _imports(module, source))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("mini_visa.domain.cards", "import hmac\nfrom mini_visa.domain.payment import Card"),
        ("mini_visa.domain.cards", "from .payment import Card"),
        ("agents.risk", "import faust\nfrom mini_visa import topics\nfrom tables.velocity import VELOCITY"),
        ("mini_visa.cli", "from mini_visa.gateway.app import run"),
    ],
)
def test_an_import_in_the_right_direction_is_not(module, source):
    assert not violations(module, _imports(module, source))
