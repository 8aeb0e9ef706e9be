"""docs/deployment.md names files, tests and pages that exist; nothing has a password that a guide printed."""

from __future__ import annotations

import re
import subprocess

import pytest
from checkers import ROOT
from manifests import DEPLOY, OVERLAYS
from rules import RULES

PAGE = (ROOT / "docs" / "deployment.md").read_text()
FOLDERS = ("base", "components", "overlays")
FROM_THE_ROOT = ("deploy/", "scripts/", "tests/", "docker/", "mini_visa/", "docs/")
CHECK = re.compile(r"`(kubectl|make|curl|test_|tests/)|\]\(|the curl at the top")
PRINTED = tuple(word[::-1] for word in ("6202@gnissecorPtnemyaP", "tnemyap_inim"))
"""The guides' password and the name of their database's user, backwards, so that this file has neither."""


def test_every_file_that_is_named_exists():
    missing = []
    for quoted in re.findall(r"`([^`\s]+/[^`\s]*)`", PAGE):
        if quoted.startswith(FROM_THE_ROOT):
            found = (ROOT / quoted).exists()
        elif quoted.split("/")[0] in FOLDERS:
            found = (DEPLOY / quoted).exists()
        else:
            continue
        if not found:
            missing.append(quoted)
    assert not missing


def test_every_page_that_is_linked_exists():
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", PAGE)]
    assert [link for link in links if link and not (ROOT / "docs" / link).exists()] == []


def test_every_test_that_is_named_exists():
    tests = "\n".join(path.read_text() for path in (ROOT / "tests" / "kubernetes").glob("test_*.py"))
    named = set(re.findall(r"`(test_\w+?)(?:\[[^`]*)?`", PAGE))
    assert [name for name in named if f"def {name}(" not in tests] == [] and len(named) > 8
    ruled = set(re.findall(r"`test_the_projects_rules_hold\[([a-z-]+)-(\w+)\]`", PAGE))
    assert ruled and ruled <= {(overlay, rule.__name__) for overlay in OVERLAYS for rule in RULES}


def rows() -> list[list[str]]:
    """Of the tables of every item of both guides."""
    items = PAGE[PAGE.index("## Every item of both guides") :]
    found = [[cell.strip() for cell in row.split("|")] for row in re.findall(r"^\|(.*)\|$", items, re.M)]
    return [row for row in found if row[0] != "item" and not row[0].startswith("---")]


def test_every_item_of_the_guides_has_something_that_does_it_and_a_check():
    """A check is a command, a test or a page with one; what comes later says so in both places."""
    assert len(rows()) > 60
    for item in rows():
        assert len(item) == 3 and all(item), item
        does, check = item[1:]
        shown = check == "none yet" if does.startswith("later") else CHECK.search(check)
        assert shown, item


def test_no_password_of_the_guides_is_in_the_repository():
    try:
        listed = subprocess.run(
            ["git", "grep", "-lI", *(part for word in PRINTED for part in ("-e", word))],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
    except FileNotFoundError:
        pytest.skip("no git here")
    if listed.returncode == 128:
        pytest.skip("not a git checkout")
    assert listed.stdout.splitlines() == []
