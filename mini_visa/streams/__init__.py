"""The kernel: exactly-once partition batches on Faust. See docs/kernel.md."""

from mini_visa.streams.processor import Context, Impossible, Processor, Record
from mini_visa.streams.table import Table, after, versioned
from mini_visa.streams.topic import Topic

__all__ = ["Context", "Impossible", "Processor", "Record", "Table", "Topic", "after", "versioned"]
