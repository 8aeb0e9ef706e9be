"""What each request may carry: the bodies of docs/http-api.md, one page to read."""

from __future__ import annotations

from mini_visa.domain.payment import AccountStatus
from mini_visa.gateway.fields import (
    CURRENCY,
    EXPIRY,
    METADATA,
    METADATA_VALUE_MAX,
    PAN,
    REQUEST_ID,
    Body,
    Field,
    account_status,
    amount_field,
    currency,
    flag_field,
    identifier_field,
    ip,
    matching,
    short_text,
)

AUTHORIZE = Body(
    "AuthorizeRequest",
    (
        REQUEST_ID,
        PAN,
        amount_field("What to hold. Zero checks the account.", required=True, zero=True),
        CURRENCY,
        identifier_field("merchant_id", "The card acceptor (ISO 8583 field 42)."),
        Field(
            "mcc",
            matching(r"[0-9]{4}", "must be 4 digits"),
            {"type": "string", "pattern": "^[0-9]{4}$", "description": "Merchant category code (ISO 18245)."},
            default="",
        ),
        identifier_field("terminal_id", "The terminal (ISO 8583 field 41)."),
        Field(
            "country",
            matching(r"[A-Z]{2}", "must be 2 upper-case letters (ISO 3166-1)"),
            {
                "type": "string",
                "pattern": "^[A-Z]{2}$",
                "description": "Of the merchant, ISO 3166-1 alpha-2.",
            },
            default="",
        ),
        identifier_field("device_id", "The device the cardholder pays with."),
        Field(
            "ip", ip, {"type": "string", "description": "The cardholder's IPv4 or IPv6 address."}, default=""
        ),
        EXPIRY,
        flag_field("cvv_match", "Result of the CVV check. Left out: not checked.", default=None),
        flag_field("capture", "Authorize and capture in one."),
        flag_field("partial_approval", "Approve what is available if it is less (code 10)."),
        METADATA,
    ),
)
INCREMENT = Body("IncrementRequest", (REQUEST_ID, amount_field("What to add to the hold.", required=True)))
CAPTURE = Body(
    "CaptureRequest",
    (
        REQUEST_ID,
        amount_field("What to capture. Default: all that is held."),
        flag_field("final", "The last capture: the rest of the hold is released.", default=True),
    ),
)
REVERSE = Body(
    "ReverseRequest",
    (
        REQUEST_ID,
        amount_field("How much of the hold to release. Default: all."),
        Field(
            "reason",
            short_text(METADATA_VALUE_MAX),
            {"type": "string", "maxLength": METADATA_VALUE_MAX, "description": "For people."},
            default="",
        ),
    ),
)
REVERSE_BY_REQUEST = Body(
    "ReverseByRequest",
    (
        REQUEST_ID,
        identifier_field("original_request_id", "The authorization that had no answer.", required=True),
        PAN,
    ),
)
REFUND = Body(
    "RefundRequest", (REQUEST_ID, amount_field("What to refund. Default: all that is captured and left."))
)
OPEN_CHARGEBACK = Body(
    "ChargebackRequest",
    (
        REQUEST_ID,
        amount_field("What the cardholder disputes. Default: all that is left."),
        identifier_field("reason_code", "The scheme's reason code.", required=True),
    ),
)
ANSWER_CHARGEBACK = Body("ChargebackAnswer", (REQUEST_ID,))
OPEN_ACCOUNT = Body(
    "OpenAccountRequest",
    (
        REQUEST_ID,
        PAN,
        EXPIRY,
        Field("currency", currency, {**CURRENCY.schema, "description": "ISO 4217."}),
        amount_field("Credit limit.", required=True, zero=True, name="limit"),
        Field(
            "status",
            account_status,
            {"type": "string", "enum": list(AccountStatus), "default": AccountStatus.ACTIVE.value},
            default=AccountStatus.ACTIVE,
        ),
    ),
)
CHANGE_ACCOUNT = Body(
    "ChangeAccountRequest",
    (
        REQUEST_ID,
        amount_field("New credit limit.", zero=True, name="limit"),
        Field("status", account_status, {"type": "string", "enum": list(AccountStatus)}),
    ),
)
PAY_ACCOUNT = Body(
    "PayAccountRequest", (REQUEST_ID, amount_field("What the cardholder pays.", required=True))
)
