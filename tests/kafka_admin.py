"""What tests tell a broker that no client of the program needs to: users, rights, what it logs."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from typing import Any, ClassVar, Final

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.admin import CreateAclsRequest_v1
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import (
    Array,
    Boolean,
    CompactArray,
    CompactBytes,
    CompactString,
    Int8,
    Int16,
    Int32,
    Schema,
    String,
    TaggedFields,
)

SHA_512: Final = 2
ITERATIONS: Final = 4096
ALLOW: Final = 3
BROKER_LOGGER, SET = 8, 0
RESOURCES: Final = {"topic": 2, "group": 3, "cluster": 4, "transactionalId": 5}
PATTERNS: Final = {"literal": 3, "prefix": 4}
OPERATIONS: Final = {
    "Read": 3, "Write": 4, "Create": 5, "Delete": 6, "Alter": 7, "Describe": 8, "DescribeConfigs": 10,
}  # fmt: skip


class _ScramResponse(Response):  # type: ignore[misc]
    API_KEY: ClassVar[int] = 51
    API_VERSION: ClassVar[int] = 0
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "results",
            CompactArray(
                ("user", CompactString("utf-8")),
                ("error_code", Int16),
                ("error_message", CompactString("utf-8")),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _ScramRequestStruct(RequestStruct):  # type: ignore[misc]
    API_KEY = 51
    API_VERSION = 0
    RESPONSE_TYPE = _ScramResponse
    FLEXIBLE_VERSION = True
    SCHEMA = Schema(
        (
            "deletions",
            CompactArray(("name", CompactString("utf-8")), ("mechanism", Int8), ("tags", TaggedFields)),
        ),
        (
            "upsertions",
            CompactArray(
                ("name", CompactString("utf-8")),
                ("mechanism", Int8),
                ("iterations", Int32),
                ("salt", CompactBytes),
                ("salted_password", CompactBytes),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _ScramRequest(Request[_ScramRequestStruct]):  # type: ignore[misc]
    """AlterUserScramCredentials: passwords for users, for SCRAM-SHA-512."""

    API_KEY = 51

    def __init__(self, passwords: dict[str, str]) -> None:
        self._passwords = passwords

    def build(self, request_struct_class: Any) -> Any:
        upsertions = []
        for user, password in self._passwords.items():
            salt = os.urandom(16)
            salted = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, ITERATIONS)
            upsertions.append((user, SHA_512, ITERATIONS, salt, salted, {}))
        return request_struct_class([], upsertions, {})


class _AclsRequest(Request[CreateAclsRequest_v1]):  # type: ignore[misc]
    """CreateAcls, any number at once."""

    API_KEY = 30

    def __init__(self, creations: list[tuple[Any, ...]]) -> None:
        self._creations = creations

    def build(self, request_struct_class: Any) -> Any:
        return request_struct_class(self._creations)


class _AlterResponse(Response):  # type: ignore[misc]
    API_KEY: ClassVar[int] = 44
    API_VERSION: ClassVar[int] = 0
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "responses",
            Array(
                ("error_code", Int16),
                ("error_message", String("utf-8")),
                ("type", Int8),
                ("name", String("utf-8")),
            ),
        ),
    )


class _AlterRequestStruct(RequestStruct):  # type: ignore[misc]
    API_KEY = 44
    API_VERSION = 0
    RESPONSE_TYPE = _AlterResponse
    SCHEMA = Schema(
        (
            "resources",
            Array(
                ("type", Int8),
                ("name", String("utf-8")),
                (
                    "configs",
                    Array(("name", String("utf-8")), ("operation", Int8), ("value", String("utf-8"))),
                ),
            ),
        ),
        ("validate_only", Boolean),
    )


class _AlterRequest(Request[_AlterRequestStruct]):  # type: ignore[misc]
    """IncrementalAlterConfigs of a broker's loggers."""

    API_KEY = 44

    def __init__(self, broker: str, levels: dict[str, str]) -> None:
        self._resource = (BROKER_LOGGER, broker, [(name, SET, level) for name, level in levels.items()])

    def build(self, request_struct_class: Any) -> Any:
        return request_struct_class([self._resource], False)


async def _ask(address: str, request: Any, broker: int | None = None) -> Any:
    admin = AIOKafkaAdminClient(bootstrap_servers=address)
    await admin.start()
    try:
        return await admin._send_request(request, broker)
    finally:
        await admin.close()


async def add_users(address: str, passwords: dict[str, str]) -> None:
    answer = await _ask(address, _ScramRequest(passwords))
    assert not [message for _, code, message, _ in answer.results if code], answer


async def allow(address: str, user: str, rules: Iterable[dict[str, Any]]) -> None:
    """`rules`: as a KafkaUser's `spec.authorization.acls` has them."""
    creations = [
        (RESOURCES[what["type"]], what["name"], PATTERNS[what["patternType"]], f"User:{user}", "*",
         OPERATIONS[operation], ALLOW)
        for what, operations in ((rule["resource"], rule["operations"]) for rule in rules)
        for operation in operations
    ]  # fmt: skip
    answer = await _ask(address, _AclsRequest(creations))
    assert len(answer.creation_responses) == len(creations)
    assert not [message for code, message in answer.creation_responses if code], answer


async def log_level(address: str, broker: int, **levels: str) -> None:
    """Of loggers, by name with `_` for `.`, until the broker ends."""
    named = {name.replace("_", "."): level for name, level in levels.items()}
    answer = await _ask(address, _AlterRequest(str(broker), named), broker)
    assert not [message for code, message, *_ in answer.responses if code], answer
