"""The OpenAPI 3.1 document, made from the route table and the same fields that validate requests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, get_args

from mini_visa import __version__
from mini_visa.domain.payment import (
    AccountStatus,
    CaptureState,
    DisputeState,
    PaymentStatus,
    RefundState,
)
from mini_visa.domain.risk import Metric, RuleOutcome
from mini_visa.gateway.access import SCOPES
from mini_visa.gateway.endpoints import (
    CONSISTENCY_TOKEN,
    EVENT_STREAM,
    IDEMPOTENCY_KEY,
    IDEMPOTENCY_REPLAYED,
    JSON,
    Route,
)
from mini_visa.gateway.fields import IDENTIFIER_PATTERN, PAYMENT_ID_PATTERN, Body
from mini_visa.gateway.problems import CONTENT_TYPE
from mini_visa.gateway.queries import AGE_MS

Schema = dict[str, Any]


def _text(description: str = "", **more: Any) -> Schema:
    return {"type": "string", **({"description": description} if description else {}), **more}


def _or_null(schema: Schema) -> Schema:
    if "enum" in schema:
        return {**schema, "type": ["string", "null"], "enum": [*schema["enum"], None]}
    return {**schema, "type": [schema["type"], "null"]}


def _object(properties: Schema, optional: Iterable[str] = (), description: str = "") -> Schema:
    left_out = set(optional)
    return {
        "type": "object",
        **({"description": description} if description else {}),
        "properties": properties,
        "required": [name for name in properties if name not in left_out],
    }


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


MONEY: Final = _text("Decimal string, exactly the currency's decimals.", pattern=r"^-?[0-9]+(\.[0-9]+)?$")
TIME: Final = _text("RFC 3339, UTC, milliseconds.", format="date-time")
CODE: Final = _text("ISO 8583 field 39.", pattern="^[0-9]{2}$")
NUMBER: Final[Schema] = {"type": "integer"}
_NUMBERED: Final[Schema] = {"n": NUMBER, "amount": MONEY, "status": _text(), "at": TIME}
_PLACE: Final = _object({"topic": _text(), "partition": NUMBER, "offset": NUMBER})
_RULE: Final = _object(
    {
        "rule": _text(),
        "version": NUMBER,
        "outcome": _text("decline, review or alert."),
        "metric": _text(),
        "value": {**NUMBER, "description": "What the rule saw."},
        "threshold": NUMBER,
        "window_s": NUMBER,
    },
    description="A risk rule that fired, its version and the numbers it saw.",
)
_AMOUNTS: Final = (
    "authorized",
    "captured",
    "reversed",
    "refunded",
    "charged_back",
    "held",
    "cleared",
    "refund_reserved",
)

PAYMENT: Final = _object(
    {
        "payment_id": _text(),
        "request_id": _text("Of the authorization.", pattern=IDENTIFIER_PATTERN),
        "account_id": _text(),
        "status": _text(enum=list(PaymentStatus)),
        "response_code": CODE,
        "response_text": _text(),
        "amount": MONEY,
        "approved_amount": MONEY,
        "currency": _text("ISO 4217.", pattern="^[A-Z]{3}$"),
        "authorization_code": _or_null(_text()),
        "card": _object({"token": _text(), "bin": _text(), "last4": _text()}),
        "risk": _object({"score": NUMBER, "rules": _list(_RULE)}),
        "amounts": _object(dict.fromkeys(_AMOUNTS, MONEY)),
        "clearing_status": _or_null(_text(enum=list(CaptureState))),
        "refund_status": _or_null(_text(enum=list(RefundState))),
        "dispute_status": _or_null(_text(enum=list(DisputeState))),
        "forced": {"type": "boolean", "description": "The last capture posted without a hold."},
        "expires_at": _or_null(TIME),
        "created_at": TIME,
        "merchant": _object({"id": _text(), "mcc": _text(), "terminal_id": _text(), "country": _text()}),
        "metadata": {"type": "object", "additionalProperties": _text()},
        "captures": _list(_object({**_NUMBERED, "forced": {"type": "boolean"}})),
        "refunds": _list(_object({**_NUMBERED, "posted": MONEY})),
        "chargebacks": _list(_object({**_NUMBERED, "reason_code": _text()})),
        "operation": _object(
            {"request_id": _text(), "response_code": CODE},
            description="The request that this answers; an increment can be declined alone.",
        ),
    },
    optional=("merchant", "metadata", "captures", "refunds", "chargebacks", "operation"),
)
EARLY_REVERSAL: Final = _object(
    {
        "payment_id": {"type": "null"},
        "request_id": _text(),
        "status": _text(enum=[PaymentStatus.REVERSED]),
        "operation": _object({"request_id": _text(), "response_code": CODE}),
    },
    description="Of a request that has not come: when it does, it is answered `reversed`, code 68.",
)
EVENT: Final = _object(
    {
        "type": _text(),
        "at": TIME,
        "request_id": _or_null(_text()),
        "log": _PLACE,
        "seq": {**NUMBER, "description": "1, 2, 3 ... per account."},
        "amount": MONEY,
        "response_code": CODE,
        "available_before": MONEY,
        "http_status": NUMBER,
        "n": NUMBER,
        "forced": {"type": "boolean"},
        "reason": _text(),
        "reason_code": _text(),
    },
    optional=(
        "seq",
        "amount",
        "response_code",
        "available_before",
        "http_status",
        "n",
        "forced",
        "reason",
        "reason_code",
    ),
)
ACCOUNT: Final = _object(
    {
        "account_id": _text(),
        "bin": _text(),
        "last4": _text(),
        "currency": _text("ISO 4217.", pattern="^[A-Z]{3}$"),
        "limit": MONEY,
        "held": MONEY,
        "posted": MONEY,
        "available": {**MONEY, "description": "limit - posted - held; may be negative."},
        "status": _text(enum=list(AccountStatus)),
        "expiry": _or_null(_text()),
        "opened_at": _or_null(TIME),
        "request_id": _text("Of the request that this answers."),
    },
    optional=("request_id",),
)
ENTRY: Final = _object(
    {
        "seq": NUMBER,
        "at": TIME,
        "type": _text(),
        "amount": MONEY,
        "currency": _text(),
        "held": MONEY,
        "posted": MONEY,
        "limit": MONEY,
        "available": MONEY,
        "payment_id": _or_null(_text()),
        "request_id": _or_null(_text()),
        "response_code": _or_null(_text()),
    },
    description="held, posted, limit and available are the account's after this entry.",
)
ALERT: Final = _object(
    {
        "alert_id": _text(),
        "at": TIME,
        "account_id": _text(),
        "request_id": _text(),
        "amount": _or_null(MONEY),
        "currency": _or_null(_text()),
        "merchant_id": _or_null(_text()),
        "score": NUMBER,
        "rule": _RULE,
    }
)
EXPLANATION: Final = _object(
    {
        "payment_id": _text(),
        "risk": _object({"score": NUMBER, "evaluated": _list(_text()), "rules": _list(_RULE)}),
        "decision": _object(
            {
                "status": _text(),
                "response_code": CODE,
                "response_text": _text(),
                "at": TIME,
                "amount": MONEY,
                "available_before": _or_null(MONEY),
                "limit": _or_null(MONEY),
                "command": _PLACE,
                "event": _PLACE,
            }
        ),
    }
)
_BALANCE: Final = _object(
    {
        "currency": _text(),
        "debits": MONEY,
        "credits": MONEY,
        "balance": {**MONEY, "description": "Debit > 0."},
    }
)
TRIAL_BALANCE: Final = _object(
    {
        "currencies": _list(
            _object(
                {
                    "currency": _text(),
                    "debits": MONEY,
                    "credits": MONEY,
                    "difference": {**MONEY, "description": "Always 0."},
                }
            )
        ),
        "positions": {**_list(_PLACE), "description": "How far the journals were read."},
    }
)
_CHAIN_PLACE: Final[Schema] = {
    "journal": _text(enum=["payments", "settlement"]),
    "partition": NUMBER,
    "number": {**NUMBER, "description": "1, 2, 3 ... in its chain."},
}
LINE: Final = _object(
    {
        "at": TIME,
        "kind": _text("What happened."),
        "amount": {**MONEY, "description": "Debit > 0."},
        "currency": _text(),
        "payment_id": _or_null(_text()),
        "merchant_id": _or_null(_text()),
        "reference": _or_null(_text("The request that caused it; in settlement, the cycle.")),
        "entry": _object(_CHAIN_PLACE),
    }
)
JOURNAL_ENTRY: Final = _object(
    {
        **_CHAIN_PLACE,
        "at": TIME,
        "kind": _text(),
        "postings": _list(_object({"account": _text(), "currency": _text(), "amount": MONEY})),
        "payment_id": _or_null(_text()),
        "reference": _or_null(_text()),
        "previous": _text("Hash of the entry before it; empty for the first."),
        "hash": _text("SHA-256, hex."),
    }
)
CYCLE: Final = _object(
    {
        "cycle": _text("When it began."),
        "partitions": {**NUMBER, "description": "That have closed it."},
        "positions": NUMBER,
        "closed_at": TIME,
    }
)
POSITION: Final = _object(
    {
        "cycle": _text(),
        "merchant_id": _text(),
        "currency": _text(),
        "items": NUMBER,
        "sales": MONEY,
        "returns": MONEY,
        "interchange": MONEY,
        "scheme_fees": MONEY,
        "net": {**MONEY, "description": "What the merchant gets; negative: that it owes."},
    }
)
SAGA: Final = _object(
    {
        "payment_id": _text(),
        "account_id": _text(),
        "state": _text("overdue: a deadline has passed.", enum=["waiting", "overdue", "compensating"]),
        "step": _text(enum=["clearing", "releasing"]),
        "captures": _list(NUMBER),
        "tries": NUMBER,
        "since": TIME,
        "age_s": NUMBER,
    }
)
RULE: Final = _object(
    {
        "rule": _text(),
        "version": NUMBER,
        "metric": _text(enum=list(get_args(Metric))),
        "window_s": NUMBER,
        "threshold": NUMBER,
        "thresholds": {"type": "object", "additionalProperties": NUMBER},
        "outcome": _text(enum=list(get_args(RuleOutcome))),
        "response_code": _or_null(CODE),
        "score": NUMBER,
        "retired": {"type": "boolean"},
    }
)
BACK_TEST: Final = _object(
    {
        "requests": {**NUMBER, "description": "Authorizations and increments in the stretch."},
        "declined_before": {**NUMBER, "description": "By risk, under the rules in force."},
        "declined_after": {**NUMBER, "description": "With this version among them."},
        "changed": {**NUMBER, "description": "Requests whose response code differs."},
        "complete": {"type": "boolean", "description": "false: the stretch has more than is looked at."},
        "differences": _list(
            _object(
                {
                    "account_id": _text(),
                    "request_id": _text(),
                    "amount": {**NUMBER, "description": "Minor units."},
                    "before": _text("Response code; empty: not declined by risk."),
                    "after": _text(),
                }
            )
        ),
    }
)
PROBLEM: Final = _object(
    {
        "type": _text(format="uri"),
        "title": _text(),
        "status": NUMBER,
        "detail": _text("What is wrong and what to do."),
        "errors": _list(_object({"field": _text(), "message": _text()})),
        "state": _text("409: the state that forbids it."),
        "left": {**MONEY, "description": "409: what would have been possible."},
        "currency": _text("Of `left`."),
    },
    optional=("errors", "state", "left", "currency"),
    description="RFC 9457.",
)


def _page(name: str) -> Schema:
    return _object(
        {"items": _list(_ref(name)), "next_cursor": _or_null(_text("null: this is the last page."))}
    )


SCHEMAS: Final[Mapping[str, Schema]] = {
    "Payment": PAYMENT,
    "PaymentRecord": {
        "allOf": [_ref("Payment"), _object({"events": _list(_ref("Event"))}, description="In order.")]
    },
    "Reversal": {"anyOf": [_ref("Payment"), EARLY_REVERSAL]},
    "PaymentPage": _page("Payment"),
    "Event": EVENT,
    "Explanation": EXPLANATION,
    "Account": ACCOUNT,
    "Entry": ENTRY,
    "EntryPage": _page("Entry"),
    "Alert": ALERT,
    "AlertPage": _page("Alert"),
    "TrialBalance": TRIAL_BALANCE,
    "LedgerAccount": _object({"account": _text(), "balances": _list(_BALANCE)}),
    "Line": LINE,
    "LinePage": _page("Line"),
    "JournalEntry": JOURNAL_ENTRY,
    "JournalEntries": _object({"items": _list(_ref("JournalEntry"))}),
    "Cycle": CYCLE,
    "CyclePage": _page("Cycle"),
    "Position": POSITION,
    "PositionPage": _page("Position"),
    "Saga": SAGA,
    "Sagas": _object({"items": _list(_ref("Saga"))}),
    "Rule": RULE,
    "Rules": _object({"items": _list(_ref("Rule"))}),
    "BackTest": BACK_TEST,
    "OpenApi": {"type": "object", "required": ["openapi", "info", "paths"]},
    "Status": _object({"status": _text()}),
    "Readiness": _object({"status": _text(), "silent": _list(_text("A partition."))}),
    "Problem": PROBLEM,
}

_STATUSES: Final = {
    400: "Bad input: which field, and why. An unknown field is one.",
    401: "No valid key.",
    403: "The key lacks the scope.",
    404: "There is no such thing.",
    405: "The path does not take this method.",
    408: "The body did not arrive in time.",
    409: "The state forbids it; `state` and `left` say more.",
    413: "The body is too large.",
    415: f"The body is not {JSON}.",
    422: "The request_id was used for another request.",
    429: "Too many requests from this client.",
    503: "Nothing was recorded, or the outcome is unknown: `detail` says which. Send it again.",
    504: "No answer in time. For an authorization: no hold remains, unless another attempt was answered.",
}
_QUERY_STATUSES: Final = (400, 429, 503, 504)
_BODY_STATUSES: Final = (404, 408, 409, 413, 415)
_COMMAND_STATUSES: Final = (400, 404, 408, 409, 413, 415, 422, 429, 503, 504)
_RETRY_AFTER: Final = (429, 503)


def _header(description: str, schema: Schema) -> Schema:
    return {"description": description, "schema": schema}


def _responses(route: Route) -> Schema:
    headers: Schema = {}
    if route.command is not None:
        headers[CONSISTENCY_TOKEN] = _header(
            "Send it with a GET to see this answer's effect.", _text(pattern="^[0-9]+:[0-9]+$")
        )
        headers[IDEMPOTENCY_REPLAYED] = _header("true: this is the first answer again.", _text())
    elif route.bounded:
        headers[AGE_MS] = _header("How old the answer may be, ms.", {"type": "integer", "minimum": 0})
    content: Schema = {JSON: {"schema": _ref(route.answers)}} if route.answers else {"text/plain": {}}
    if route.stream is not None:
        content = {EVENT_STREAM: {"schema": _text("Events named `alert`, with an Alert as JSON.")}}
    if route.csv:
        content["text/csv"] = {"schema": _text("RFC 4180, with a header line.")}
    ok: Schema = {"description": "Done.", "content": content}
    if headers:
        ok["headers"] = headers
    statuses: list[int] = []
    if route.command is not None:
        statuses.extend(_COMMAND_STATUSES)
    elif route.bounded:
        statuses.extend(_QUERY_STATUSES)
        if route.body is not None:
            statuses.extend(_BODY_STATUSES)
        elif "{" in route.path or route.name == "list_journal_entries":
            statuses.append(404)
    elif route.stream is not None:
        statuses.extend((400, 429, 503))
    elif route.name == "readyz":
        statuses.append(503)
    if route.scope is not None:
        statuses.extend((401, 403))
    return {"200": ok, **{str(status): _problem(status) for status in sorted(statuses)}}


def _problem(status: int) -> Schema:
    problem: Schema = {
        "description": _STATUSES[status],
        "content": {CONTENT_TYPE: {"schema": _ref("Problem")}},
    }
    if status in _RETRY_AFTER:
        problem["headers"] = {"Retry-After": _header("Seconds.", {"type": "integer", "minimum": 1})}
    return problem


def _body_schema(body: Body) -> Schema:
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {field.name: dict(field.schema) for field in body.fields},
        "required": [field.name for field in body.fields if field.required],
    }


_PATH_PATTERNS: Final = {
    "payment_id": PAYMENT_ID_PATTERN,
    "name": "^[A-Za-z0-9._:-]{1,160}$",
    "cycle": "^[0-9TZ:-]{1,32}$",
    "rule": r"^[a-z0-9][a-z0-9-]{0,63}$",
    "account_id": "^tok_[A-Za-z0-9_-]{1,64}$",
    "n": "^[0-9]{1,6}$",
}


def _parameters(route: Route) -> list[Schema]:
    parameters: list[Schema] = [
        {"name": name, "in": "path", "required": True, "schema": _text(pattern=_PATH_PATTERNS[name])}
        for name in (part[1:-1] for part in route.path.split("/") if part.startswith("{"))
    ]
    if route.query is not None:
        family = route.query.family
        for field in route.query.fields:
            parameters.append({**_parameter(field.name, field.schema), "required": field.required})
        if family is not None:
            parameters.append(_parameter(f"{family.name}.KEY", family.schema))
    if route.command is not None:
        parameters.append(
            {
                "name": IDEMPOTENCY_KEY,
                "in": "header",
                "description": "May carry the request_id instead of the body.",
                "schema": _text(pattern=IDENTIFIER_PATTERN),
            }
        )
    elif route.bounded:
        parameters.append(
            {
                "name": CONSISTENCY_TOKEN,
                "in": "header",
                "description": "Of a POST's answer: wait until its effect is visible.",
                "schema": _text(pattern="^[0-9]{1,4}:[0-9]{1,18}$"),
            }
        )
    return parameters


def _parameter(name: str, schema: Mapping[str, Any]) -> Schema:
    own = dict(schema)
    description = own.pop("description", "")
    return {"name": name, "in": "query", "description": description, "schema": own}


def _operation(route: Route) -> Schema:
    operation: Schema = {
        "operationId": route.name,
        "summary": route.summary,
        "tags": [route.tag],
        "responses": _responses(route),
        "security": [{"key": [route.scope]}] if route.scope else [],
    }
    if route.scope:
        operation["description"] = f"Scope: `{route.scope}`."
    parameters = _parameters(route)
    if parameters:
        operation["parameters"] = parameters
    if route.body is not None:
        operation["requestBody"] = {"required": True, "content": {JSON: {"schema": _ref(route.body.name)}}}
    return operation


def document(routes: Sequence[Route]) -> Schema:
    """The whole document."""
    paths: dict[str, Schema] = {}
    bodies: Schema = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
        if route.body is not None:
            bodies[route.body.name] = _body_schema(route.body)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Mini-Visa",
            "version": __version__,
            "summary": "Card payments: authorize, capture, reverse, refund, dispute.",
            "description": (
                "Amounts are decimal strings in the currency's own precision. Times are RFC 3339 UTC with "
                "milliseconds. A declined payment is a 200: it was processed. Every other failure is a "
                "problem (RFC 9457). A POST can be repeated with the same request_id: it is done once."
            ),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "tags": [{"name": tag} for tag in dict.fromkeys(route.tag for route in routes)],
        "paths": paths,
        "components": {
            "schemas": {**bodies, **SCHEMAS},
            "securitySchemes": {
                "key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "Needed where MINI_VISA_AUTH=required. Scopes: "
                    + "; ".join(f"{scope} ({meaning})" for scope, meaning in SCOPES.items()),
                }
            },
        },
    }
