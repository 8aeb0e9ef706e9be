"""Every route of the gateway, one page to read. Validation, access, metrics and OpenAPI follow it."""

from __future__ import annotations

from typing import Final

from mini_visa import topics
from mini_visa.gateway import operations, payments, requests
from mini_visa.gateway.endpoints import Route

ROUTES: Final[tuple[Route, ...]] = (
    Route(
        method="POST",
        path="/payments/authorize",
        name="authorize",
        summary="Ask for money: place a hold on the card's account",
        tag="payments",
        scope="payments:write",
        answers="Payment",
        body=requests.AUTHORIZE,
        topic=topics.CARD_REQUESTS,
        command=payments.authorize,
    ),
    Route(
        method="GET",
        path="/healthz",
        name="healthz",
        summary="The process is alive",
        tag="operations",
        scope=None,
        answers="Status",
        reply=operations.healthz,
        bounded=False,
    ),
    Route(
        method="GET",
        path="/readyz",
        name="readyz",
        summary="An authorization can be answered now",
        tag="operations",
        scope=None,
        answers="Status",
        reply=operations.readyz,
        bounded=False,
    ),
    Route(
        method="GET",
        path="/metrics",
        name="metrics",
        summary="Prometheus metrics",
        tag="operations",
        scope="operations:read",
        reply=operations.metrics,
        bounded=False,
    ),
)
