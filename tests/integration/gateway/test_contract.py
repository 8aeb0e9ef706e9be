"""The written contract, the OpenAPI document and the running gateway say the same."""

from __future__ import annotations

import re
import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from mini_visa.gateway.access import SCOPES, create_key
from mini_visa.gateway.openapi import document
from mini_visa.gateway.routes import ROUTES
from mini_visa.settings import Settings

from .conftest import Client, GatewayRunner
from .downstream import Downstream

PAN = "4111111111111111"
PAGE = Path(__file__).parents[3] / "docs" / "http-api.md"
DOCUMENT = document(ROUTES)
OPERATIONS = [
    (method.upper(), path, operation)
    for path, operations in DOCUMENT["paths"].items()
    for method, operation in operations.items()
]
IDS = [operation["operationId"] for _, _, operation in OPERATIONS]


def conforms(value: Any, schema: dict[str, Any]) -> None:
    Draft202012Validator({**schema, "components": DOCUMENT["components"]}).validate(value)


def written() -> Iterator[tuple[str, str]]:
    """(method, path) of every route that the page lists in a table."""
    for line in PAGE.read_text().splitlines():
        if line.startswith("| `") and (
            found := re.match(r"\| `(GET|POST|PATCH|PUT|DELETE) (/[^` ]*)`", line)
        ):
            yield found[1], found[2]


def target(path: str) -> str:
    return path.replace("{payment_id}", "pay_1abcdefgh_7f").replace("{account_id}", "tok_1abcdefgh").replace(
        "{n}", "1"
    ).replace("{name}", "clearing:suspense").replace("{cycle}", "2026-01-01T00:00:00Z").replace(
        "{rule}", "a-rule"
    ) + ("?payment=pay_1abcdefgh_7f" if path == "/ledger/entries" else "")


def body_of(operation: dict[str, Any]) -> dict[str, Any] | None:
    """The smallest good body of an operation."""
    if "requestBody" not in operation:
        return None
    name = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].rsplit("/", 1)[1]
    values = {
        "request_id": secrets.token_hex(8),
        "pan": PAN,
        "original_request_id": "r1",
        "reason_code": "10.4",
        "version": 1,
        "metric": "count",
        "window_s": 60,
        "threshold": 10,
        "outcome": "alert",
    }
    required = DOCUMENT["components"]["schemas"][name]["required"]
    body = {field: values.get(field, "10.00") for field in required}
    return body | {"limit": "10.00"} if name == "ChangeAccountRequest" else body


@pytest.fixture
async def answered(client: Client, settings: Settings) -> AsyncIterator[Client]:
    """A gateway whose authorizations are approved."""
    async with Downstream(settings):
        yield client


def test_the_document_is_valid_openapi() -> None:
    validate(DOCUMENT)


def test_the_page_and_the_document_list_the_same_routes() -> None:
    listed = list(written())
    assert sorted(listed) == sorted((method, path) for method, path, _ in OPERATIONS)


async def test_the_document_served_is_the_one_that_is_checked(client: Client) -> None:
    assert await (await client.get("/openapi.json")).json() == DOCUMENT


def test_each_scope_is_of_some_use_and_known() -> None:
    used = {
        scope for _, _, operation in OPERATIONS for entry in operation["security"] for scope in entry["key"]
    }
    assert used <= SCOPES.keys()


async def test_an_approved_authorization_conforms(answered: Client) -> None:
    response = await answered.post(
        "/payments/authorize", json={"request_id": secrets.token_hex(8), "pan": PAN, "amount": "10.00"}
    )
    assert response.status == 200
    conforms(await response.json(), {"$ref": "#/components/schemas/Payment"})


@pytest.mark.parametrize(("method", "path", "operation"), OPERATIONS, ids=IDS)
async def test_every_route_answers_as_its_operation_says(
    gateway_for: GatewayRunner, method: str, path: str, operation: dict[str, Any]
) -> None:
    """Nobody answers the commands here, so they end as they must: 504."""
    async with gateway_for(gateway_deadline_s=0.2) as client:
        response = await client.request(method, target(path), json=body_of(operation))
        assert str(response.status) in operation["responses"], await response.text()
        content = operation["responses"][str(response.status)]["content"]
        assert response.content_type in content or response.content_type.startswith("text/")
        if response.content_type.endswith("json"):
            conforms(await response.json(), content[response.content_type]["schema"])
        if response.content_type == "text/event-stream":
            response.close()  # it has no end
            return
        if response.status in (429, 503):
            assert int(response.headers["Retry-After"]) >= 1
        if operation["operationId"] in ("healthz", "metrics", "openapi", "docs"):
            assert response.status == 200
        elif operation["operationId"] == "readyz":
            assert response.status == 503, "nobody decides here"
        elif "Idempotency-Replayed" in operation["responses"].get("200", {}).get("headers", {}):
            assert response.status == 504


@pytest.mark.parametrize(
    ("method", "path", "operation"),
    [row for row in OPERATIONS if "requestBody" in row[2]],
    ids=[row[2]["operationId"] for row in OPERATIONS if "requestBody" in row[2]],
)
async def test_every_command_refuses_what_its_operation_does_not_list(
    client: Client, method: str, path: str, operation: dict[str, Any]
) -> None:
    body = body_of(operation)
    assert body is not None
    where = target(path)
    for status, sent in (
        (400, {"json": body | {"amout": "1"}}),
        (400, {"json": {}}),
        (400, {"json": body | {"request_id": PAN + " "}}),
        (400, {}),
        (413, {"data": b" " * (10 << 20), "headers": {"Content-Type": "application/json"}}),
        (415, {"data": b"{}", "headers": {"Content-Type": "text/plain"}}),
    ):
        response = await client.request(method, where, **sent)
        assert response.status == status, await response.text()
        assert response.content_type == "application/problem+json"
        conforms(await response.json(), {"$ref": "#/components/schemas/Problem"})
        assert PAN not in await response.text()


async def test_every_route_asks_for_its_scope_and_no_other(
    gateway_for: GatewayRunner, settings: Settings
) -> None:
    keys = {
        scope: create_key(settings.home / "keys.json", scope.replace(":", "-"), [scope]) for scope in SCOPES
    }
    async with gateway_for(auth="required", gateway_deadline_s=0.1) as client:
        for method, path, operation in OPERATIONS:
            scopes = [scope for entry in operation["security"] for scope in entry["key"]]
            body, where = body_of(operation), target(path)
            for scope, key in keys.items():
                if scopes and scope in scopes:
                    continue
                response = await client.request(
                    method, where, json=body, headers={"Authorization": f"Bearer {key}"}
                )
                assert (response.status == 403) == bool(scopes), (method, path, scope, response.status)
            nobody = await client.request(method, where, json=body)  # a stream's answer is never read
            assert (nobody.status == 401) == bool(scopes), (method, path)
            for scope in scopes:
                response = await client.request(
                    method, where, json=body, headers={"Authorization": f"Bearer {keys[scope]}"}
                )
                assert response.status not in (401, 403, 500), (method, path)
