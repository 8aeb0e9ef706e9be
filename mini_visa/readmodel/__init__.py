"""The query side: what has happened, in SQL, for the gateway, the command line and the dashboard."""

from mini_visa.readmodel.database import Database, DatabaseUnusable, SchemaNewer, SchemaOlder
from mini_visa.readmodel.pages import InvalidCursor, Page, PaymentFilters
from mini_visa.readmodel.queries import Entry, PaymentRecord, Position, ReadModel

__all__ = [
    "Database",
    "DatabaseUnusable",
    "Entry",
    "InvalidCursor",
    "Page",
    "PaymentFilters",
    "PaymentRecord",
    "Position",
    "ReadModel",
    "SchemaNewer",
    "SchemaOlder",
]
