"""What must hold for the whole project: the lock, the settings' page, and no card numbers in the program."""

from __future__ import annotations

import re
import runpy
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mini_visa.domain.cards import luhn_valid
from mini_visa.settings import Settings

ROOT = Path(__file__).parents[2]

PLACES_WITH_TEST_CARDS = (
    "tests/",
    "docs/",
    "README.md",
    "CHANGELOG.md",
    "mini_visa/demo/",
    "mini_visa/gateway/fields.py",
)
"""Where the networks' published test numbers may stand (the gateway shows one on its API page)."""
_CARD = re.compile(r"(?<![0-9A-Za-z.])[3-6][0-9]{12,18}(?![0-9A-Za-z])")


def _tracked_files() -> Iterator[Path]:
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True
        ).stdout
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            yield ROOT / name


def card_numbers(text: str) -> list[str]:
    """Numbers that could be a PAN: 13 to 19 digits of a network's range with a right check digit."""
    return [found for found in _CARD.findall(text) if luhn_valid(found)]


def test_no_card_number_stands_outside_tests_and_docs():
    wrong = []
    for path in _tracked_files():
        name = str(path.relative_to(ROOT))
        if not name.startswith(PLACES_WITH_TEST_CARDS):
            wrong += [f"{name}: {number[:6]}..." for number in card_numbers(path.read_text(errors="ignore"))]
    assert not wrong, "\n".join(wrong)


def test_a_card_number_in_a_text_is_found():
    assert card_numbers('{"pan":"4111111111111111"}') == ["4111111111111111"]
    assert card_numbers("x = 5555555555554444  # Mastercard") == ["5555555555554444"]
    assert card_numbers("4111111111111112 sha256:4111111111111111f 1795404142802") == []


def test_the_lock_names_no_registry_and_pins_every_package_by_hash():
    lock = (ROOT / "requirements.lock").read_text()
    assert "://" not in lock
    assert not re.search(r"^\s*(-i|-f|--index-url|--extra-index-url|--find-links|--trusted-host)", lock, re.M)
    entries = re.split(r"\n(?=\S)", lock.strip())
    assert len(entries) > 50
    for entry in entries:
        assert re.match(r"[A-Za-z0-9._-]+==[^\s;]+( ;.*)? \\\n", entry), entry.splitlines()[0]
        assert "--hash=sha256:" in entry


def test_the_lock_holds_every_direct_dependency():
    project = (ROOT / "pyproject.toml").read_text()
    locked = {
        re.split(r"==", line)[0].lower().replace("_", "-")
        for line in (ROOT / "requirements.lock").read_text().splitlines()
        if "==" in line and not line.startswith(" ")
    }
    direct = {
        name.lower().replace("_", "-")
        for name in re.findall(r'^    "([A-Za-z0-9._-]+)(?:\[[a-z,]+\])?[>=<]', project, re.M)
    }
    assert len(direct) > 20
    assert direct <= locked, direct - locked


def test_every_setting_is_on_the_configuration_page():
    page = (ROOT / "docs" / "configuration.md").read_text()
    missing = [name for name in Settings.model_fields if f"`MINI_VISA_{name.upper()}`" not in page]
    assert not missing, f"run `make docs`: {missing}"


def test_the_configuration_page_is_what_the_settings_say():
    written = runpy.run_path(str(ROOT / "scripts" / "configuration.py"))["page"]()
    assert (ROOT / "docs" / "configuration.md").read_text() == written, "run `make docs`"


def test_no_two_test_files_outside_packages_have_the_same_name():
    """pytest knows such a file by its name alone, and refuses to collect the second one."""
    seen: dict[str, Path] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        if not (path.parent / "__init__.py").exists():
            assert path.name not in seen, f"{path} and {seen[path.name]}"
            seen[path.name] = path


def test_every_setting_is_in_the_manifests_or_it_is_said_why_not():
    """tests/kubernetes holds every overlay to this; here it costs nothing, and says it at once."""
    manifests = [path for path in (ROOT / "deploy" / "k8s").rglob("*") if path.is_file()]
    named = "\n".join(path.read_text() for path in manifests)
    reasons = (ROOT / "tests" / "kubernetes" / "rules.py").read_text()
    forgotten = [
        name
        for name in Settings.model_fields
        if f"MINI_VISA_{name.upper()}" not in named and f'"{name}":' not in reasons
    ]
    assert not forgotten, f"add them to deploy/k8s/base/settings.env: {forgotten}"
