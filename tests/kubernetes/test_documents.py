"""docs/deployment.md names files, tests and pages that exist; nothing has a password that a guide printed."""

from __future__ import annotations

import re
import subprocess

import pytest
from checkers import ROOT
from manifests import DEPLOY

PAGE = (ROOT / "docs" / "deployment.md").read_text()
FOLDERS = ("base", "components", "overlays")
FROM_THE_ROOT = ("deploy/", "scripts/", "tests/", "docker/", "mini_visa/", "docs/")
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
