"""Response codes: ISO 8583 field 39, the ones that are used here, and their texts."""

from __future__ import annotations

from typing import Final

APPROVED: Final = "00"
DO_NOT_HONOR: Final = "05"
PARTIAL_APPROVAL: Final = "10"
INVALID_TRANSACTION: Final = "12"
INVALID_AMOUNT: Final = "13"
INVALID_CARD: Final = "14"
LOST_CARD: Final = "41"
STOLEN_CARD: Final = "43"
INSUFFICIENT_FUNDS: Final = "51"
EXPIRED_CARD: Final = "54"
NOT_PERMITTED: Final = "57"
SUSPECTED_FRAUD: Final = "59"
EXCEEDS_AMOUNT_LIMIT: Final = "61"
RESTRICTED_CARD: Final = "62"
EXCEEDS_FREQUENCY: Final = "65"
RESPONSE_TOO_LATE: Final = "68"
ISSUER_UNAVAILABLE: Final = "91"
DUPLICATE: Final = "94"
SYSTEM_ERROR: Final = "96"

TEXTS: Final[dict[str, str]] = {
    APPROVED: "approved",
    DO_NOT_HONOR: "do not honor",
    PARTIAL_APPROVAL: "partial approval",
    INVALID_TRANSACTION: "invalid transaction",
    INVALID_AMOUNT: "invalid amount",
    INVALID_CARD: "invalid card",
    LOST_CARD: "lost card",
    STOLEN_CARD: "stolen card",
    INSUFFICIENT_FUNDS: "insufficient funds",
    EXPIRED_CARD: "expired card",
    NOT_PERMITTED: "not permitted to cardholder",
    SUSPECTED_FRAUD: "suspected fraud",
    EXCEEDS_AMOUNT_LIMIT: "exceeds amount limit",
    RESTRICTED_CARD: "restricted card",
    EXCEEDS_FREQUENCY: "exceeds frequency limit",
    RESPONSE_TOO_LATE: "response received too late",
    ISSUER_UNAVAILABLE: "issuer unavailable",
    DUPLICATE: "duplicate",
    SYSTEM_ERROR: "system error",
}


def text_of(code: str) -> str:
    """For people, lower case. Raises KeyError for a code that is not used here."""
    return TEXTS[code]
