"""The log in files: topics copied out of a cluster, and into a new one after that one is lost.

Offsets are part of what the log means: a payment's id carries its command's, the read model and every service
remember theirs. So an import gives every record the offset that it had. Where there was none (a transaction's
marker, an aborted record, a compacted one) it writes what readers of committed records never see: a marker,
or records of a transaction that it aborts.

An export may run at any time, and again: it appends what is new. What can be imported is a *cut*: one moment
for all topics, at which no transaction was half done. Changelogs are copied without keeping offsets (nobody
remembers those), and the progress records in them are written for the new cluster's identity: workers then
restore their tables and go on where the cut was.
"""

from mini_visa.archive.exporting import Exported, export_topics
from mini_visa.archive.files import ArchiveUnusable
from mini_visa.archive.importing import Restored, import_topics

__all__ = ["ArchiveUnusable", "Exported", "Restored", "export_topics", "import_topics"]
