"""Floors and aims, as data. A floor is what the core must hold; an aim is what speed work is for.

They hold on two cores: one for the worker that is measured, one for broker and load generator; the whole
system shares both with them. Ratios are taken within one run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Aim:
    what: str
    unit: str
    floor: float
    aim: float
    better: Literal["higher", "lower"] = "higher"

    def verdict(self, value: float) -> str:
        """ "aim", "floor" or "below", whichever `value` reaches."""
        sign = 1 if self.better == "higher" else -1
        if sign * value >= sign * self.aim:
            return "aim"
        return "floor" if sign * value >= sign * self.floor else "below"


AIMS: dict[str, Aim] = {
    "w1.ratio.kstreams-eos": Aim("W1 against Kafka Streams exactly_once_v2, 300 K records", "x", 2, 4),
    "w1.ratio.kstreams-eos.long": Aim("the same, 1.5 M records", "x", 1, 2),
    "w1.ratio.faust-alo": Aim("W1 against idiomatic Faust, 300 K records", "x", 20, 40),
    "authorization.per_s": Aim("authorization service, records/s a core", "/s", 15_000, 30_000),
    "authorization.hot.ratio": Aim("the same with one hot account, as a share of it", "x", 0.5, 1.0),
    "risk.per_s": Aim("risk service, records/s a core", "/s", 20_000, 40_000),
    "http.p50_ms": Aim("HTTP authorize at 500/s, p50", "ms", 40, 20, "lower"),
    "http.p99_ms": Aim("HTTP authorize at 500/s, p99", "ms", 120, 60, "lower"),
    "http.saturation_per_s": Aim("HTTP saturation, 32 connections (closed loop)", "/s", 1_500, 3_000),
    "failover.first_decision_s": Aim("first decision after SIGKILL, restarted at once", "s", 5, 3, "lower"),
    "restore.per_s": Aim("restore from an empty disk, records/s a worker", "/s", 100_000, 200_000),
    "pipeline.per_s": Aim("whole pipeline, payments/s", "/s", 3_000, 10_000),
    "growth.cost_ratio": Aim("cost a payment with 10 M accounts against 10 K", "x", 2, 1.5, "lower"),
}
