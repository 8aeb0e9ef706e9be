"""Fixtures that tests of the manifests use."""

from __future__ import annotations

from postgresql import fresh_postgresql, postgresql_binaries  # noqa: F401 - fixtures
