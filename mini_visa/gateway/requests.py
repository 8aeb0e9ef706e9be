"""What each request may carry, in its body or its query string: one page to read."""

from __future__ import annotations

from typing import Final, get_args

from mini_visa.domain.payment import AccountStatus, PaymentStatus
from mini_visa.domain.risk import SCORE_MAX, WINDOW_S_MAX, WINDOW_S_MIN, Metric, RuleOutcome
from mini_visa.gateway.fields import (
    CURRENCY,
    EXPIRY,
    METADATA,
    METADATA_VALUE_MAX,
    PAN,
    PAYMENT_ID_SCHEMA,
    REQUEST_ID,
    Body,
    Field,
    among,
    amount_field,
    amount_schema,
    currency,
    flag_field,
    identifier,
    identifier_field,
    identifier_of_payment,
    identifier_schema,
    integer,
    ip,
    matching,
    metadata,
    moment,
    one_of,
    short_text,
    thresholds,
    units,
    whole_number,
)
from mini_visa.readmodel.pages import CURSOR_MAX, PAGE_MAX

PAGE_DEFAULT: Final = 100

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
            one_of(AccountStatus),
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
        Field("status", one_of(AccountStatus), {"type": "string", "enum": list(AccountStatus)}),
    ),
)
PAY_ACCOUNT = Body(
    "PayAccountRequest", (REQUEST_ID, amount_field("What the cardholder pays.", required=True))
)


_THRESHOLD_MAX: Final = 10**15
_RULE_FIELDS: Final = (
    Field(
        "version",
        integer(1, 2**31),
        {"type": "integer", "minimum": 1, "maximum": 2**31, "description": "Higher than the one in force."},
        required=True,
    ),
    Field(
        "metric",
        among(get_args(Metric)),
        {"type": "string", "enum": list(get_args(Metric)), "description": "Of the card, over the window."},
        required=True,
    ),
    Field(
        "window_s",
        integer(WINDOW_S_MIN, WINDOW_S_MAX),
        {
            "type": "integer",
            "minimum": WINDOW_S_MIN,
            "maximum": WINDOW_S_MAX,
            "description": "Seconds of event time; above 60 a multiple of 60.",
        },
        required=True,
    ),
    Field(
        "threshold",
        integer(0, _THRESHOLD_MAX),
        {
            "type": "integer",
            "minimum": 0,
            "maximum": _THRESHOLD_MAX,
            "description": "The rule fires above it. Of amounts: minor units of two decimals.",
        },
        required=True,
    ),
    Field(
        "thresholds",
        thresholds,
        {
            "type": "object",
            "propertyNames": {"pattern": "^[A-Z]{3}$"},
            "additionalProperties": {"type": "integer", "minimum": 0, "maximum": _THRESHOLD_MAX},
            "description": "Of amounts, by currency: its own minor units.",
        },
        default={},
    ),
    Field(
        "outcome",
        among(get_args(RuleOutcome)),
        {"type": "string", "enum": list(get_args(RuleOutcome))},
        required=True,
    ),
    Field("score", integer(0, SCORE_MAX), {"type": "integer", "minimum": 0, "maximum": SCORE_MAX}),
    flag_field("retired", "Not evaluated any more."),
)
PUT_RULE = Body("RuleVersion", _RULE_FIELDS)
BACK_TEST = Body(
    "BackTestRequest",
    (
        *_RULE_FIELDS,
        Field(
            "from", moment, {"type": "string", "format": "date-time", "description": "Default: a day ago."}
        ),
        Field("to", moment, {"type": "string", "format": "date-time", "description": "Default: now."}),
    ),
)


# -- query strings ------------------------------------------------------------------------------------

LIMIT = Field(
    "limit",
    whole_number(1, PAGE_MAX),
    {"type": "integer", "minimum": 1, "maximum": PAGE_MAX, "default": PAGE_DEFAULT},
    default=PAGE_DEFAULT,
)
CURSOR = Field(
    "cursor",
    short_text(CURSOR_MAX),
    {
        "type": "string",
        "minLength": 1,
        "maxLength": CURSOR_MAX,
        "description": "The former page's next_cursor, with the same filters.",
    },
)


def time_field(name: str, description: str) -> Field:
    return Field(name, moment, {"type": "string", "format": "date-time", "description": description})


AT = time_field("at", "As it was at this time.")

LIST_PAYMENTS = Body(
    "ListPayments",
    (
        Field("account", identifier, identifier_schema("Of this account.")),
        Field("merchant_id", identifier, identifier_schema("At this merchant.")),
        Field(
            "status",
            one_of(PaymentStatus),
            {"type": "string", "enum": list(PaymentStatus), "description": "As it is now."},
        ),
        time_field("from", "Created at or after this time."),
        time_field("to", "Created before this time."),
        Field("min_amount", units, amount_schema("At least this much was asked for.")),
        Field("max_amount", units, amount_schema("At most this much was asked for.")),
        CURSOR,
        LIMIT,
    ),
    family=Field(
        "metadata",
        metadata,
        {
            "type": "string",
            "maxLength": METADATA_VALUE_MAX,
            "description": "The value of the metadata pair KEY, for any KEY; several are all wanted.",
        },
        default={},
    ),
)
READ_LEDGER_ACCOUNT = Body("ReadLedgerAccount", (AT,))
LIST_LINES = Body("ListLines", (AT, CURSOR, LIMIT))
LIST_JOURNAL = Body(
    "ListJournal", (Field("payment", identifier_of_payment, PAYMENT_ID_SCHEMA, required=True),)
)
LIST_CYCLES = Body("ListCycles", (CURSOR, LIMIT))
LIST_SAGAS = Body("ListSagas", (LIMIT,))
LIST_ALERTS = Body("ListAlerts", (CURSOR, LIMIT))
LIST_ENTRIES = Body("ListEntries", (AT, CURSOR, LIMIT))
READ_ACCOUNT = Body("ReadAccount", (AT,))
