"""Typed settings: conf/minitrue.toml, overridden by MINITRUE__SECTION__KEY in the environment.

Owns the list of settings, their defaults and their bounds; reads files, writes none. Settings are constant
after loading. A relative path in the file is relative to the file's folder. Every setting is explained in
conf/minitrue.toml and docs/configuration.md (a test compares the three).
"""

import difflib
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import msgspec
from msgspec import Meta, Struct, field

from common.errors import ConfigError

ENV_FILE = "MINITRUE_CONFIG"
ENV_PREFIX = "MINITRUE__"
DEFAULT_FILE = Path(__file__).resolve().parent.parent / "conf" / "minitrue.toml"

PositiveInt = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0)]
Port = Annotated[int, Meta(ge=1, le=65535)]


class Paths(Struct, frozen=True, forbid_unknown_fields=True):
    data: str = "../data"


class Cluster(Struct, frozen=True, forbid_unknown_fields=True):
    ring_store: str = "file:../data/ring.json"
    initial_ring: str = "ring.toml"
    ring_poll_s: Seconds = 1.0


class Subscription(Struct, frozen=True, forbid_unknown_fields=True):
    filter: Annotated[str, Meta(min_length=1)]
    qos: Annotated[int, Meta(ge=0, le=1)] = 1


class Mqtt(Struct, frozen=True, forbid_unknown_fields=True):
    broker: Literal["auto", "mosquitto", "embedded", "external"] = "auto"
    url: str = "mqtt://127.0.0.1:1883"
    username: str = ""
    password: str = ""
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    client_id: str = ""
    keepalive_s: Annotated[int, Meta(ge=5, le=65535)] = 30
    receive_maximum: Annotated[int, Meta(ge=1, le=65535)] = 65535
    reconnect_min_s: Seconds = 0.2
    reconnect_max_s: Seconds = 15.0
    subscriptions: list[Subscription] = field(default_factory=lambda: [Subscription("sensors/#")])


class Bridge(Struct, frozen=True, forbid_unknown_fields=True):
    id: Annotated[str, Meta(pattern="^[A-Za-z0-9_.-]{1,64}$")] = "bridge1"
    ack_endpoint: str = "tcp://127.0.0.1:*"
    linger_ms: Annotated[float, Meta(ge=0)] = 5.0
    batch_rows: Annotated[int, Meta(ge=1, le=1_000_000)] = 20_000
    ack_timeout_s: Seconds = 5.0
    window_bytes: Annotated[int, Meta(ge=65536)] = 8 << 20
    pending_bytes: Annotated[int, Meta(ge=1 << 20)] = 256 << 20
    dead_letter_file_bytes: Annotated[int, Meta(ge=4096)] = 64 << 20


class Ingest(Struct, frozen=True, forbid_unknown_fields=True):
    max_future_s: Seconds = 3600.0
    max_id_bytes: Annotated[int, Meta(ge=1, le=65535)] = 256
    max_tags: Annotated[int, Meta(ge=0, le=1000)] = 32
    max_payload_bytes: Annotated[int, Meta(ge=1024, le=268_435_455)] = 64 << 20


class Storage(Struct, frozen=True, forbid_unknown_fields=True):
    head_rows: Annotated[int, Meta(ge=1000, le=1 << 30)] = 1_000_000
    seal_interval_s: Seconds = 3600.0
    group_bytes: Annotated[int, Meta(ge=4096)] = 16 << 20
    read_threads: Annotated[int, Meta(ge=1, le=256)] = 2


class Query(Struct, frozen=True, forbid_unknown_fields=True):
    host: str = "127.0.0.1"
    port: Port = 8080
    threads: Annotated[int, Meta(ge=1, le=1024)] = 16
    timeout_s: Seconds = 10.0
    max_body_bytes: Annotated[int, Meta(ge=1024)] = 1 << 20
    page_limit: Annotated[int, Meta(ge=1, le=1_000_000)] = 10_000


class Bus(Struct, frozen=True, forbid_unknown_fields=True):
    heartbeat_s: Seconds = 1.0
    max_message_bytes: Annotated[int, Meta(ge=1 << 20)] = 256 << 20


class Log(Struct, frozen=True, forbid_unknown_fields=True):
    format: Literal["kv", "json"] = "kv"
    level: Literal["debug", "info", "warning", "error"] = "info"


class Settings(Struct, frozen=True, forbid_unknown_fields=True):
    """All settings, one attribute per section of the file."""

    paths: Paths = Paths()
    cluster: Cluster = Cluster()
    mqtt: Mqtt = Mqtt()
    bridge: Bridge = Bridge()
    ingest: Ingest = Ingest()
    storage: Storage = Storage()
    query: Query = Query()
    bus: Bus = Bus()
    log: Log = Log()
    file: str = str(DEFAULT_FILE)  # where the settings came from, not itself a setting

    def path(self, value: str) -> Path:
        """A path setting, absolute: relative ones are relative to the configuration file's folder."""
        return (Path(self.file).parent / value).resolve()

    @property
    def data_dir(self) -> Path:
        """Where everything is written; nothing is written outside it."""
        return self.path(self.paths.data)
