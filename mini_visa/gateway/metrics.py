"""What the gateway measures. Labels are route templates, statuses and topics: never an id, never a PAN."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

_SECONDS: Final = (0.002, 0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.12, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    """One registry a gateway, so that several can live in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "mini_visa_gateway_requests",
            "Requests answered.",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self.request_seconds = Histogram(
            "mini_visa_gateway_request_seconds",
            "From the request's head to its answer.",
            ["method", "route"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.produce_seconds = Histogram(
            "mini_visa_gateway_produce_seconds",
            "From sending a command to its acknowledgement by the broker.",
            ["topic"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.in_flight = Gauge(
            "mini_visa_gateway_in_flight", "Requests being worked on.", registry=self.registry
        )
        self.in_flight_max = Gauge(
            "mini_visa_gateway_in_flight_max",
            "Commands beyond this are answered 503.",
            registry=self.registry,
        )
        self.silent_partitions = Gauge(
            "mini_visa_gateway_silent_partitions",
            "Partitions that this service has not worked on for longer than a request waits.",
            ["service"],
            registry=self.registry,
        )
        self.refused = Counter(
            "mini_visa_gateway_refused",
            "Requests refused before any work.",
            ["reason"],
            registry=self.registry,
        )
        self.timeouts = Counter(
            "mini_visa_gateway_timeouts",
            "Commands without an answer in time, and what became of the time-out reversal "
            "(durable, not_durable, none: not an authorization).",
            ["route", "reversal"],
            registry=self.registry,
        )
