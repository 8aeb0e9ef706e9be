"""Runbooks: every command, option, setting, metric and page that one names is there."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from mini_visa import cli
from mini_visa.settings import Settings

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted((DOCS / "runbooks").glob("*.md"))
RUNBOOKS = [page for page in PAGES if page.name != "README.md"]
OPERATIONS = [
    *PAGES,
    *(
        DOCS / name
        for name in ("migration.md", "capacity.md", "production-checklist.md", "disaster-recovery.md")
    ),
]
SECTIONS = ["Symptom", "Diagnosis", "Fix", "Over when"]
PROMISED = {
    # the deployment guide's common issues
    "pod-oom-killed", "service-unavailable", "high-latency", "certificate",
    # the pipeline guide's six
    "autoscaler-not-scaling", "consumer-lag", "prometheus-out-of-storage", "dashboard-no-data",
    "fraud-alerts-missing", "dashboard-not-accessible",
    # a payment system's own
    "stuck-saga", "dead-letters", "projection-behind", "hanging-transaction", "progress-mismatch",
    "group-coordinator",
    "disk-full", "gateway-shedding", "clearing-house-unreachable",
}  # fmt: skip


def commands(text: str, program: str) -> Iterator[str]:
    """What follows `program` on the lines of code blocks and in code spans."""
    for block in re.findall(r"```(?:sh|console)\n(.*?)```", text, re.S):
        for line in block.splitlines():
            if found := re.match(rf"\s*(?:\.venv/bin/)?{program}( .*)?$", line):
                yield (found[1] or "").strip()
    for span in re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.S)):
        if found := re.match(rf"(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?{program}( .*)?$", span):
            yield (found[1] or "").strip()


def _command(words: list[str]) -> tuple[Any, list[str]]:
    """The click command that `words` begin with, and the words after it."""
    command: Any = typer.main.get_command(cli.app)
    while hasattr(command, "commands"):
        assert words, "a group of commands is no command"
        assert words[0] in command.commands, f"no command {words[0]}"
        command, words = command.commands[words[0]], words[1:]
    return command, words


@pytest.mark.parametrize("page", OPERATIONS, ids=lambda page: page.stem)
def test_every_command_of_a_page_exists_with_its_options(page):
    for line in commands(page.read_text(), "mini-visa"):
        words = shlex.split(line, comments=True)
        if not words:
            continue
        command, rest = _command(words)
        known = {option for parameter in command.params for option in parameter.opts}
        for word in rest:
            if word.startswith("-"):
                assert word.partition("=")[0] in known, f"{page.name}: mini-visa {line}: no option {word}"
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.M))
    for line in commands(page.read_text(), "make"):
        assert not line or line.split()[0] in targets, f"{page.name}: make {line}"


@pytest.mark.parametrize("page", OPERATIONS, ids=lambda page: page.stem)
def test_every_setting_metric_script_and_page_that_is_named_exists(page):
    text = page.read_text()
    variables = {f"MINI_VISA_{name.upper()}" for name in Settings.model_fields} | {"MINI_VISA_URL"}
    assert set(re.findall(r"\bMINI_VISA_[A-Z_]*[A-Z]\b", text)) <= variables
    sources = "".join(path.read_text() for path in (ROOT / "mini_visa").rglob("metrics.py"))
    for metric in re.findall(r"`(mini_visa_[a-z_]+)`", text):
        assert f'"{metric}"' in sources, metric
    for script in re.findall(r"(?<![\w/])((?:deploy|scripts)/[\w/.-]*\w)", text):
        assert (ROOT / script).exists(), script
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (page.parent / link).exists(), f"{page.name}: {link}"


@pytest.mark.parametrize("page", RUNBOOKS, ids=lambda page: page.stem)
def test_every_runbook_has_the_same_four_parts_and_commands_to_find_out_with(page):
    text = page.read_text()
    assert re.findall(r"^## (.*)$", text, re.M) == SECTIONS
    diagnosis = text.split("## Diagnosis")[1].split("## Fix")[0]
    assert "```sh" in diagnosis


def test_every_promised_runbook_is_there_and_listed():
    assert {page.stem for page in RUNBOOKS} == PROMISED
    index = (DOCS / "runbooks" / "README.md").read_text()
    assert all(f"({name}.md)" in index for name in PROMISED)
