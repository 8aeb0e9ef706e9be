"""Every setting, its unit, its default and what it is for. One page to read.

Each is an environment variable with the prefix MINI_VISA_ (``MINI_VISA_PARTITIONS=24``), or a file of that
name in lower case in /run/secrets (``mini_visa_database_url``), where containers are given what is secret.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Final, Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

SECRETS: Final = Path("/run/secrets")


def _default_home() -> Path:
    return Path.home() / ".local" / "share" / "mini-visa"


class Settings(BaseSettings):
    """Units are last in a name: _s seconds, _ms milliseconds, _bytes bytes."""

    model_config = SettingsConfigDict(
        env_prefix="MINI_VISA_",
        extra="ignore",
        frozen=True,
        secrets_dir=SECRETS if SECRETS.is_dir() else None,
    )

    # -- where ---------------------------------------------------------------------------------
    home: Path = Field(default_factory=_default_home)
    """Everything on this machine's disk: broker, tables, read model, keys, logs."""
    environment: str = Field("dev", pattern=r"^[a-z0-9-]{1,32}$")
    """Part of every transactional id and consumer group: two environments never meet."""

    # -- Kafka ---------------------------------------------------------------------------------
    broker: str = "embedded"
    """"embedded", "docker", or "kafka://HOST:PORT[,HOST:PORT]" of a cluster (Kafka 4.0 or newer)."""
    broker_heap_bytes: int = Field(384 << 20, ge=192 << 20, le=16 << 30)
    """Java heap of the embedded broker, at most; the process takes some 150 MB more."""
    broker_image: str = ""
    """Of the broker in Docker; "": apache/kafka of the version that is embedded."""
    kafka_security: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    kafka_ca_file: Path | None = None
    kafka_cert_file: Path | None = None
    kafka_key_file: Path | None = None
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"
    kafka_username: str = ""
    kafka_password: str = Field("", repr=False)
    partitions: int = Field(2, ge=1, le=1024)
    """Of every topic keyed by account: as many as workers of a service may ever be. Fixed at creation. Each
    commits for itself: of one worker, two take less time than four (docs/performance.md)."""
    replies_partitions: int = Field(4, ge=1, le=1024)
    """Of gateway.replies. Gateways beyond this share one and drop what is not theirs."""
    replication: int = Field(1, ge=1, le=5)
    """Copies of every partition; min.insync.replicas is one less (at least one)."""

    # -- workers -------------------------------------------------------------------------------
    instance: str = ""
    """Static group membership: the pod's name. "": the service's name (one worker a service)."""
    batch_records_max: int = Field(4_000, ge=1, le=100_000)
    batch_bytes_max: int = Field(4 << 20, ge=1 << 10, le=64 << 20)
    rest_s: float = Field(0.25, ge=0.0, le=60.0)
    """Ledger, clearing and reversal, which no client waits for, take what has come since this long ago at
    once: larger batches under load. What comes after a quiet moment does not wait; a backlog neither."""
    session_timeout_s: float = Field(10.0, ge=1.0, le=300.0)
    transaction_timeout_s: float = Field(10.0, ge=1.0, le=300.0)
    drain_timeout_s: float = Field(20.0, ge=1.0, le=600.0)
    """A clean shutdown or a revoked partition may take this long; below the pod's grace period."""
    rocksdb_memory_bytes: int = Field(256 << 20, ge=8 << 20)
    """Block cache and write buffers of one worker process, divided over its tables and partitions."""
    tick_interval_s: float = Field(1.0, ge=0.05, le=3600.0)
    web_port: int = Field(0, ge=0, le=65535)
    """Of a worker's /healthz, /readyz and /metrics. 0: none."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    # -- gateway -------------------------------------------------------------------------------
    gateway_host: str = "127.0.0.1"
    gateway_port: int = Field(8080, ge=0, le=65535)
    gateway_id: int | None = Field(None, ge=0)
    """Which partition of gateway.replies it listens on, modulo their number. None: a digest of `instance`, so
    that pods spread over the partitions by their names."""
    gateway_deadline_s: float = Field(5.0, ge=0.05, le=60.0)
    """How long a request waits for its outcome before 504 (and the time-out reversal)."""
    gateway_in_flight_max: int = Field(512, ge=1, le=100_000)
    """More requests at once are answered 503 with Retry-After: never more than this, fewer while answers are
    slower than `gateway_answer_target_s`."""
    gateway_answer_target_s: float = Field(0.25, ge=0.0, le=60.0)
    """While the median answer takes longer, fewer requests are worked on at once, so that those that are
    do not wait for the others. 0: always `gateway_in_flight_max`."""
    gateway_rate_per_s: float = Field(0.0, ge=0.0, le=1e6)
    """Requests a second that one client (its key, or its address) may send; beyond: 429. 0: no limit."""
    gateway_burst: int = Field(100, ge=1, le=1_000_000)
    """Requests that a client may send at once before the rate counts."""
    gateway_body_bytes_max: int = Field(64 << 10, ge=1 << 10, le=16 << 20)
    gateway_drain_s: float = Field(10.0, ge=0.0, le=300.0)
    auth: Literal["off", "required"] = "off"
    token_keys_file: Path | None = None
    """Tokenization keys, newest first, a line each: KEY_ID:HEX. None: HOME/token-keys, made if absent."""

    # -- read model ----------------------------------------------------------------------------
    database_url: str = ""
    """SQLAlchemy URL; "": SQLite in HOME/readmodel.sqlite."""
    database_migrate: bool = True
    """Make and upgrade the read model's tables on start. False where `mini-visa readmodel migrate` does."""
    database_patience_s: float = Field(120.0, ge=0.0, le=240.0)
    """How long the projection tries again when the database is gone before it ends with an error."""

    # -- domain defaults -----------------------------------------------------------------------
    default_currency: str = Field("USD", pattern=r"^[A-Z]{3}$")
    hold_days: int = Field(7, ge=1, le=365)
    hold_days_travel: int = Field(31, ge=1, le=365)
    """Lodging, cruise, vehicle rental (by MCC)."""
    hold_fuel_s: float = Field(7_200.0, ge=0.1, le=31 * 86_400.0)
    """Automated fuel pumps (MCC 5542): the amount is known when the tank is full."""
    request_window_h: int = Field(24, ge=1, le=24 * 30)
    """A request id is remembered this long, in event time."""

    fees_file: Path | None = None
    """Fee schedule as JSON, a list of rates by MCC and country (docs/ledger.md). None: one rate for all."""
    refund_fees: Literal["kept", "mirrored"] = "kept"
    """Whether a merchant gets the fees of a payment back, in proportion, when it is refunded."""

    # -- clearing and reversal -----------------------------------------------------------------
    clearing_cycle_s: float = Field(86_400.0, ge=1.0, le=31 * 86_400.0)
    """Length of a settlement cycle, in event time. Cycles begin at whole multiples of it since 1970."""
    clearing_present_again_s: float = Field(60.0, ge=0.5, le=86_400.0)
    """A capture without an outcome is presented again after this, then each time twice as late."""
    clearing_deadline_s: float = Field(86_400.0, ge=0.5, le=31 * 86_400.0)
    """A presentment without an outcome for this long is called back."""
    compensation_retry_s: float = Field(300.0, ge=0.1, le=86_400.0)
    """A compensation without effect for this long is tried again, then each time twice as late."""
    clearing_house_url: str = Field("", pattern=r"^(https?://[^\s]+)?$")
    """Where the connector finds the clearing house; "": the one that comes with this project, on this
    machine."""
    clearing_house_host: str = "127.0.0.1"
    clearing_house_port: int = Field(8090, ge=0, le=65535)
    """Of the clearing house that comes with this project. `up` and `demo` take any free one unless this is
    set."""
    clearing_rejections: float = Field(0.0, ge=0.0, le=1.0)
    """Share of presentments that this clearing house rejects."""
    clearing_lost_answers: float = Field(0.0, ge=0.0, le=1.0)
    """Share of its answers that do not arrive: it has decided, and the connection ends."""
    clearing_delay_s: float = Field(0.0, ge=0.0, le=86_400.0)
    """How long it says "pending" before it decides."""
    clearing_late: float = Field(0.0, ge=0.0, le=1.0)
    """Share of presentments that it is late with."""
    clearing_late_s: float = Field(600.0, ge=0.0, le=31 * 86_400.0)
    """How long it says "pending" about those."""
    connector_batch_max: int = Field(200, ge=1, le=500)
    """Presentments that the connector sends in one request."""
    connector_in_flight_max: int = Field(4, ge=1, le=256)
    """Requests that it has under way at once."""
    connector_timeout_s: float = Field(5.0, ge=0.05, le=60.0)
    """How long the connector waits for an answer of the clearing house."""
    connector_tries_max: int = Field(6, ge=1, le=100)
    """How often it asks before it leaves a presentment to be presented again."""

    @property
    def gateway_url(self) -> str:
        """Of the gateway that has these settings."""
        return _http(self.gateway_host, self.gateway_port)

    @property
    def clearing_house(self) -> str:
        """URL of the clearing house that presentments go to."""
        return self.clearing_house_url or _http(self.clearing_house_host, self.clearing_house_port)

    @property
    def logs(self) -> Path:
        return self.home / "logs"


def _http(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def environment_of(settings: Settings) -> dict[str, str]:
    """The environment of a process that is to have these settings and no others."""
    others = {name: value for name, value in os.environ.items() if not name.startswith("MINI_VISA_")}
    return others | {
        f"MINI_VISA_{name.upper()}": str(value)
        for name, value in settings.model_dump().items()
        if value is not None
    }


@cache
def settings() -> Settings:
    """The process's settings, read from the environment once."""
    return Settings()
