"""The soak's verdict can fail: a leak is told from a heap that breathes. The soak takes half an hour."""

from __future__ import annotations

import random

import pytest

from tests.integration.limits.soak import SAMPLE_S, Samples, judge


def samples(minutes: float, leak_mb_per_minute: float, size: float = 128.0, noise: float = 6.0) -> Samples:
    """A process that fills its caches for five minutes, breathes, and perhaps leaks."""
    choose = random.Random(7)
    return [
        (at, size * min(1.0, 0.5 + at / 600) + leak_mb_per_minute * at / 60 + choose.uniform(-noise, noise))
        for at in (SAMPLE_S * number for number in range(int(minutes * 60 / SAMPLE_S)))
    ]


@pytest.mark.parametrize("size", [60.0, 128.0, 700.0])
def test_a_process_that_fills_its_caches_and_breathes_is_flat(size: float) -> None:
    assert judge(samples(30, 0.0, size, noise=size / 10)).flat


@pytest.mark.parametrize(("leak", "size"), [(1.0, 128.0), (1.0, 200.0), (3.0, 700.0)])
def test_a_process_that_leaks_is_not(leak: float, size: float) -> None:
    found = judge(samples(30, leak, size))
    assert not found.flat
    assert found.mb_per_hour == pytest.approx(60 * leak, rel=0.15)


def test_a_single_peak_does_not_make_a_leak() -> None:
    found = samples(30, 0.0)
    found[-3] = found[-3][0], 900.0
    assert judge(found).flat


def test_too_short_a_run_tells_nothing() -> None:
    with pytest.raises(ValueError, match="too few"):
        judge(samples(1.5, 5.0))
