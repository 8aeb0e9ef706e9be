"""The kernel: exactly-once partition batches on Faust. See docs/kernel.md.

What a handler needs is imported at once; what runs it, and Faust with it, only when it is asked for.
"""

from typing import TYPE_CHECKING, Any

from mini_visa.streams.processor import Context, Impossible, Processor, Record
from mini_visa.streams.table import Table, after, versioned
from mini_visa.streams.topic import Topic

if TYPE_CHECKING:
    from mini_visa.streams.app import App, create_app

__all__ = [
    "App",
    "Context",
    "Impossible",
    "Processor",
    "Record",
    "Table",
    "Topic",
    "after",
    "create_app",
    "versioned",
]


def __getattr__(name: str) -> Any:
    if name in ("App", "create_app"):
        from mini_visa.streams import app

        return getattr(app, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
