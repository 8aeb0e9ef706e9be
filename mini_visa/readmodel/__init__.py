"""The query side: what has happened, in SQL, for the gateway, the command line and the dashboard."""

from mini_visa.readmodel.database import Database, DatabaseUnusable, SchemaNewer, SchemaOlder
from mini_visa.readmodel.pages import InvalidCursor, Page, PaymentFilters
from mini_visa.readmodel.queries import (
    Cycle,
    Entry,
    LedgerBalance,
    Line,
    OpenSaga,
    PaymentRecord,
    Position,
    ReadModel,
    TrialBalance,
)

__all__ = [
    "Cycle",
    "Database",
    "DatabaseUnusable",
    "Entry",
    "InvalidCursor",
    "LedgerBalance",
    "Line",
    "OpenSaga",
    "Page",
    "PaymentFilters",
    "PaymentRecord",
    "Position",
    "ReadModel",
    "SchemaNewer",
    "SchemaOlder",
    "TrialBalance",
]
