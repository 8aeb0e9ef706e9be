"""What the kernel tells Prometheus."""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

_SECONDS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)

BATCHES = Counter("mini_visa_batches", "Committed partition batches", ["processor"])
RECORDS = Counter("mini_visa_records", "Source records processed and committed", ["processor"])
OUTPUTS = Counter("mini_visa_outputs", "Records sent to sinks and committed", ["processor"])
CHANGES = Counter("mini_visa_changes", "Table rows written and committed", ["processor"])
DEAD_LETTERS = Counter("mini_visa_dead_letters", "Source records that became dead letters", ["processor"])
BATCH_SECONDS = Histogram(
    "mini_visa_batch_seconds", "From taking a batch to having it stored", ["processor"], buckets=_SECONDS
)
HANDLER_SECONDS = Histogram(
    "mini_visa_handler_seconds", "A batch's time in the handler", ["processor"], buckets=_SECONDS
)
COMMIT_SECONDS = Histogram(
    "mini_visa_commit_seconds", "A batch's Kafka transaction, begin to end", ["processor"], buckets=_SECONDS
)
RESTORED = Counter("mini_visa_restored_records", "Changelog records applied while acquiring", ["processor"])
RESTORE_SECONDS = Gauge(
    "mini_visa_restore_seconds", "How long the last acquisition took", ["processor", "partition"]
)
STATE = Gauge(
    "mini_visa_ownership",
    "1 for the state that a partition of this worker is in",
    ["processor", "partition", "state"],
)
LAG = Gauge("mini_visa_lag_records", "Committed source records not yet fetched", ["processor", "partition"])
FORGOTTEN = Counter(
    "mini_visa_offsets_forgotten",
    "Partitions whose group had an older offset than it was told",
    ["processor"],
)
REJOINS = Counter("mini_visa_rejoins", "Times the group forgot this member", ["processor"])
ASSIGNED = Gauge("mini_visa_assigned_partitions", "Partitions of this worker", ["processor"])
TICKS = Counter("mini_visa_ticks", "Ticks written into source partitions", ["processor"])
