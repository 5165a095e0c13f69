"""Typed settings: conf/minitrue.toml, overridden by MINITRUE__SECTION__KEY in the environment.

Owns the list of settings, their defaults and their bounds; reads files, writes none. Settings are constant
after loading. A relative path in the file is relative to the file's folder. Every setting is explained in
conf/minitrue.toml and docs/configuration.md (a test compares the three).
"""

import difflib
import ipaddress
import math
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, get_args, get_origin
from urllib.parse import SplitResult, urlsplit

import msgspec
from msgspec import Meta, Struct, field
from msgspec.inspect import BoolType, FloatType, IntType, LiteralType, StrType, type_info

from common import subscriptions
from common.errors import ConfigError
from common.subscriptions import Subscription as Subscription

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
    etcd_ca_file: str = ""
    etcd_cert_file: str = ""
    etcd_key_file: str = ""
    etcd_username: str = ""
    etcd_password_file: str = ""
    etcd_timeout_s: Seconds = 2.0


class Mqtt(Struct, frozen=True, forbid_unknown_fields=True):
    broker: Literal["auto", "mosquitto", "embedded", "external"] = "auto"
    url: str = "mqtt://127.0.0.1:1883"
    username: str = ""
    password: str = ""
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    client_id: str = ""
    share_group: Annotated[str, Meta(pattern="^[^/+#]{0,64}$")] = ""
    keepalive_s: Annotated[int, Meta(ge=5, le=65535)] = 30
    receive_maximum: Annotated[int, Meta(ge=1, le=65535)] = 65535
    reconnect_min_s: Seconds = 0.2
    reconnect_max_s: Seconds = 15.0
    silence_s: Annotated[float, Meta(ge=0)] = 300.0
    subscriptions: list[Subscription] = field(default_factory=lambda: [Subscription("sensors/#")])


class Bridge(Struct, frozen=True, forbid_unknown_fields=True):
    id: Annotated[str, Meta(pattern=r"^(?!\.{1,2}$)[A-Za-z0-9_.-]{1,64}$")] = "bridge1"
    ack_endpoint: str = "tcp://127.0.0.1:*"
    ack_advertised: str = ""
    linger_ms: Annotated[float, Meta(ge=0)] = 5.0
    batch_rows: Annotated[int, Meta(ge=1, le=1_000_000)] = 20_000
    ack_timeout_s: Seconds = 5.0
    window_bytes: Annotated[int, Meta(ge=65536)] = 8 << 20
    pending_bytes: Annotated[int, Meta(ge=1 << 20)] = 256 << 20
    dead_letter_bytes: Annotated[int, Meta(ge=1 << 20)] = 1 << 30
    spool_bytes: Annotated[int, Meta(ge=1 << 20)] = 4 << 30
    dead_letter_file_bytes: Annotated[int, Meta(ge=4096)] = 64 << 20


class Ingest(Struct, frozen=True, forbid_unknown_fields=True):
    max_future_s: Seconds = 3600.0
    max_id_bytes: Annotated[int, Meta(ge=1, le=65535)] = 256
    max_tags: Annotated[int, Meta(ge=0, le=1000)] = 32
    max_payload_bytes: Annotated[int, Meta(ge=1024, le=268_435_455)] = 64 << 20
    max_elements: PositiveInt = 500_000


class Storage(Struct, frozen=True, forbid_unknown_fields=True):
    head_rows: Annotated[int, Meta(ge=1000, le=1 << 30)] = 1_000_000
    head_wal_bytes: Annotated[int, Meta(ge=4096)] = 64 << 20
    seal_interval_s: Seconds = 3600.0
    head_bytes: Annotated[int, Meta(ge=1 << 20)] = 64 << 20
    group_bytes: Annotated[int, Meta(ge=4096)] = 16 << 20
    read_threads: Annotated[int, Meta(ge=1, le=256)] = 2
    codec: Literal["auto", "gorilla"] = "auto"
    retention_days: Annotated[int, Meta(ge=0, le=36_500)] = 0
    max_series: PositiveInt = 1_000_000
    disk_floor_bytes: Annotated[int, Meta(ge=0)] = 256 << 20
    memory_bytes: Annotated[int, Meta(ge=256 << 20)] = 1 << 30
    cache_bytes: Annotated[int, Meta(ge=1 << 20)] = 64 << 20
    compaction_bytes: Annotated[int, Meta(ge=4 << 20)] = 64 << 20
    compaction_share: Annotated[float, Meta(gt=0, le=1)] = 0.5
    repair_interval_s: Seconds = 900.0
    repair_settle_s: Annotated[float, Meta(ge=0)] = 300.0
    repair_rate_bytes: Annotated[int, Meta(ge=0)] = 32 << 20
    fence_s: Seconds = 10.0
    drop_grace_s: Annotated[float, Meta(ge=0)] = 3600.0


class Query(Struct, frozen=True, forbid_unknown_fields=True):
    host: str = "127.0.0.1"
    port: Port = 8080
    threads: Annotated[int, Meta(ge=1, le=1024)] = 16
    queue: Annotated[int, Meta(ge=0, le=4096)] = 64
    timeout_s: Seconds = 10.0
    max_body_bytes: Annotated[int, Meta(ge=1024)] = 1 << 20
    page_limit: Annotated[int, Meta(ge=1, le=1_000_000)] = 10_000
    max_series: PositiveInt = 100_000
    max_points: PositiveInt = 200_000_000
    max_rows: PositiveInt = 1_000_000
    max_values: PositiveInt = 5_000_000
    live_streams: Annotated[int, Meta(ge=0, le=4096)] = 32
    live_queue: PositiveInt = 10_000
    live_heartbeat_s: Seconds = 15.0
    max_response_bytes: Annotated[int, Meta(ge=1 << 16)] = 1 << 30
    tokens_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    plain_http: bool = False
    cors_origins: list[str] = field(default_factory=list)
    page_dir: str = ""


class Bus(Struct, frozen=True, forbid_unknown_fields=True):
    heartbeat_s: Seconds = 1.0
    key_file: str = ""


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
    def bridge_late_s(self) -> float:
        """A bridge that no node has heard for so long has ended, or reaches no node."""
        return 3 * self.bus.heartbeat_s + 2.0  # three beats missed, and time for one to be read

    @property
    def data_dir(self) -> Path:
        """Where everything is written; nothing is written outside it."""
        return self.path(self.paths.data)


def load(path: Path | None = None, environ: Mapping[str, str] = os.environ) -> Settings:
    """The settings of a file, overridden by the environment's MINITRUE__SECTION__KEY variables.

    path: None means the file that MINITRUE_CONFIG names, else conf/minitrue.toml of this checkout.
    A variable's text is taken as it is for text settings, as a TOML value for others.
    Raises ConfigError: one line with file or variable, key, value, and what is allowed.
    """
    file = Path(path or environ.get(ENV_FILE) or DEFAULT_FILE).absolute()
    tree = _read(file)
    overrides = {variable: _override(variable, text) for variable, text in _override_texts(environ)}
    for section, key, value in overrides.values():
        if isinstance(tree.setdefault(section, {}), dict):
            tree[section][key] = value
    source = _Source(str(file), {(section, key): name for name, (section, key, _) in overrides.items()})
    settings: Settings = _convert(tree, Settings, (), source)
    for where, problem in _contradictions(settings):
        source.fail(where, _value_at(settings, where), problem)
    return msgspec.structs.replace(settings, file=str(file))


def require_loopback(endpoint: str, what: str) -> None:
    """Raise ConfigError unless an endpoint ("tcp://127.0.0.1:5710", or a bare host) stays on this machine.

    what: the setting or ring entry that holds it, for the text.
    """
    host = urlsplit(endpoint).hostname if "://" in endpoint else endpoint
    if not is_loopback(host or ""):
        raise ConfigError(f"{what} = {endpoint!r}: {_LOOPBACK_OR_KEY}")


_LOOPBACK = "want a loopback address (127.0.0.1, ::1, localhost)"
_LOOPBACK_OR_KEY = f"{_LOOPBACK}, or a key for the bus: name a bus.key_file, make it with tools/ringctl keys"
_LOOPBACK_OR_TOKENS = (
    f"{_LOOPBACK}, or tokens that requests have to bear: name a query.tokens_file, make it with tools/tokens add"
)
_LOOPBACK_OR_TLS = (
    f"{_LOOPBACK}, or TLS: query.cert_file and query.key_file; or query.plain_http = true, and then anybody on the "
    "network can read tokens and answers"
)
# What a storage worker takes, measured: the process with its kernels and buffers (80 MB idle); one head that is filled,
# two that wait to be sealed, and what sealing sorts them with; a series in the catalog (160 to 290) and in segments.
_PROCESS_BYTES = 128 << 20
_HEADS = 5
_SERIES_BYTES = 350
_SECRETS = ("password",)  # keys whose values no error text shows
Place = tuple[str, ...]  # ("mqtt", "subscriptions", "[0]", "qos")


class _Source(Struct, frozen=True):
    """Where values came from: the file, or for a setting (section, key) the variable that overrides it."""

    file: str
    variables: dict[tuple[str, ...], str]

    def fail(self, place: Place, value: Any, problem: str) -> NoReturn:
        """Raise the ConfigError for the value at a place."""
        origin = self.variables.get(place[:2], self.file)
        shown = "(hidden)" if place[-1] in _SECRETS else _shown(value)
        raise ConfigError(f"{origin}: {_dotted(place)} = {shown}: {problem}")


def _dotted(place: Place) -> str:
    return ".".join(place).replace(".[", "[")


def _shown(value: Any) -> str:
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 100 else text[:100] + "..."


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: cannot read the configuration: {error.strerror}") from error
    except ValueError as error:  # not TOML, or not UTF-8
        raise ConfigError(f"{file}: not a TOML file: {error}") from error


def _override_texts(environ: Mapping[str, str]) -> list[tuple[str, str]]:
    return sorted(item for item in environ.items() if item[0].startswith(ENV_PREFIX))


def _override(variable: str, text: str) -> tuple[str, str, Any]:
    """Section, key and value that a variable stands for."""
    section, _, key = variable.removeprefix(ENV_PREFIX).lower().partition("__")
    known = {f"{ENV_PREFIX}{a}__{b}".upper(): type_ for a, b, type_ in _all_settings()}
    if variable not in known:
        raise ConfigError(f"{variable} = {_shown(text)}: unknown setting; {_nearest(variable.upper(), known)}")
    if isinstance(type_info(known[variable]), StrType | LiteralType):
        return section, key, text
    try:
        (value,) = tomllib.loads(f"{key} = {text}").values()
    except ValueError as error:
        raise ConfigError(f"{variable} = {_shown(text)}: want {_wanted(known[variable])}") from error
    return section, key, value


def _value_at(settings: Settings, place: Place) -> Any:
    """The value at a place, which exists."""
    value: Any = settings
    for part in place:
        if isinstance(value, list):
            value = value[int(part.strip("[]"))]
        else:
            value = value[part] if isinstance(value, dict) else getattr(value, part)
    return value


def _fields(struct: type[Struct]) -> dict[str, msgspec.structs.FieldInfo]:
    """The settings, or sections, of a struct by name."""
    fields = {info.name: info for info in msgspec.structs.fields(struct)}
    if struct is Settings:
        del fields["file"]
    return fields


def _all_settings() -> Iterator[tuple[str, str, Any]]:
    """Section, key and type of every setting."""
    for section, info in _fields(Settings).items():
        for key, setting in _fields(info.type).items():
            yield section, key, setting.type


def _convert(value: Any, type_: Any, place: Place, source: _Source) -> Any:
    """The value as the type that its place has; fails with what would be allowed there."""
    if isinstance(type_, type) and issubclass(type_, Struct):
        return _convert_table(value, type_, place, source)
    if get_origin(type_) is list:
        if not isinstance(value, list):
            source.fail(place, value, f"want {_wanted(type_)}")
        (item,) = get_args(type_)
        return [_convert(part, item, (*place, f"[{at}]"), source) for at, part in enumerate(value)]
    try:
        converted = msgspec.convert(value, type_)
    except msgspec.ValidationError:
        source.fail(place, value, f"want {_wanted(type_)}")
    if isinstance(converted, float) and not math.isfinite(converted):
        source.fail(place, value, f"want {_wanted(type_)}")
    return converted


def _convert_table(value: Any, struct: type[Struct], place: Place, source: _Source) -> Any:
    if not isinstance(value, dict):
        source.fail(place, value, f"want a table of {', '.join(_fields(struct))}")
    fields = _fields(struct)
    for key in value:
        if key not in fields:
            _fail_unknown((*place, key), value[key], list(fields), source)
    for key, info in fields.items():
        if info.required and key not in value:
            source.fail(place, value, f"lacks {key}: want {_wanted(info.type)}")
    return struct(**{key: _convert(part, fields[key].type, (*place, key), source) for key, part in value.items()})


def _fail_unknown(place: Place, value: Any, known: list[str], source: _Source) -> NoReturn:
    if len(place) == 1:
        source.fail(place, value, f"unknown section; {_nearest(place[0], known)}")
    elsewhere = [f"{section}.{key}" for section, key, _ in _all_settings() if key == place[-1]]
    hint = f"did you mean {elsewhere[0]}?" if elsewhere else _nearest(place[-1], known)
    source.fail(place, value, f"unknown setting; {hint}")


def _nearest(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), 1, 0.5)
    return f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"


def _wanted(type_: Any) -> str:
    """What a setting of this type may be, in words."""
    info = type_info(type_)
    if get_origin(type_) is Literal:
        return "one of " + ", ".join(get_args(type_))
    if isinstance(info, IntType):
        return "an integer" + _bounds(info)
    if isinstance(info, BoolType):
        return "true or false"
    if isinstance(info, FloatType):
        return "a number" + _bounds(info)
    if isinstance(info, StrType):
        rules = [f"matching {info.pattern}"] if info.pattern else []
        rules += [f"of at least {info.min_length} characters"] if info.min_length else []
        return " ".join(["text", *rules])
    if get_origin(type_) is list:
        return "a list of tables" if issubclass(get_args(type_)[0], Struct) else "a list of texts"
    if get_origin(type_) is dict:
        return "a table of texts"
    raise TypeError(f"BUG: no words for a setting of type {type_}")


def _bounds(info: IntType | FloatType) -> str:
    signs = {"from": info.ge, "above": info.gt, "to": info.le, "below": info.lt}
    return "".join(f" {word} {bound}" for word, bound in signs.items() if bound is not None)


def _contradictions(settings: Settings) -> Iterator[tuple[Place, str]]:
    """Values that are possible alone but not in this version or not together: their place, what is wrong."""
    yield from _mqtt_contradictions(settings.mqtt)
    for place, problem in subscriptions.problems(settings.mqtt.subscriptions, settings.ingest.max_id_bytes):
        yield ("mqtt", "subscriptions", *place), problem
    yield from _ring_store_contradictions(settings.cluster)
    yield from _query_contradictions(settings.query)
    yield from _ack_endpoint_contradictions(settings.bridge, bool(settings.bus.key_file))
    yield from _storage_contradictions(settings.storage)


def _ring_store_contradictions(cluster: Cluster) -> Iterator[tuple[tuple[str, str], str]]:
    in_etcd = etcd_parts(cluster.ring_store) is not None
    if not in_etcd and not cluster.ring_store.startswith("file:"):
        yield ("cluster", "ring_store"), "want file:PATH, or etcd://HOST:PORT[,HOST:PORT...]/PREFIX"
    names = ("etcd_ca_file", "etcd_cert_file", "etcd_key_file", "etcd_username", "etcd_password_file")
    given = [name for name in names if getattr(cluster, name)]
    if given and not in_etcd:
        yield ("cluster", given[0]), f"is for etcd, but cluster.ring_store = {cluster.ring_store!r}"
    if bool(cluster.etcd_cert_file) != bool(cluster.etcd_key_file):
        problem = f"belongs together with cluster.etcd_key_file = {cluster.etcd_key_file!r}; want both or neither"
        yield ("cluster", "etcd_cert_file"), problem
    if cluster.etcd_cert_file and not cluster.etcd_ca_file:
        yield ("cluster", "etcd_cert_file"), "is for TLS, and needs cluster.etcd_ca_file"
    if bool(cluster.etcd_username) != bool(cluster.etcd_password_file):
        yield ("cluster", "etcd_username"), "belongs together with cluster.etcd_password_file; want both or neither"


def etcd_parts(url: str) -> tuple[list[tuple[str, int]], str] | None:
    """Host and port of each member, and the prefix of keys ("minitrue" where none is given), that a URL
    etcd://HOST:PORT[,HOST:PORT...][/PREFIX] names; None for any other text.
    """
    if not url.startswith("etcd://"):
        return None
    members, _, prefix = url.removeprefix("etcd://").partition("/")
    parts = [_split_url(f"etcd://{member}") for member in members.split(",")]
    endpoints = [(part.hostname, part.port) for part in parts if part and not part.username]
    known = [(host, port) for host, port in endpoints if host and port]
    prefix = prefix.strip("/")
    if len(known) != len(parts) or not re.fullmatch("[A-Za-z0-9_./-]*", prefix):
        return None
    return known, prefix or "minitrue"


def _query_contradictions(query: Query) -> Iterator[tuple[tuple[str, str], str]]:
    """Off loopback HTTP has tokens, and TLS or the word that it may go without."""
    if bool(query.cert_file) != bool(query.key_file):
        yield ("query", "cert_file"), f"belongs together with query.key_file = {query.key_file!r}; want both or neither"
    if is_loopback(query.host):
        return
    if not query.tokens_file:
        yield ("query", "host"), _LOOPBACK_OR_TOKENS
    if not query.cert_file and not query.plain_http:
        yield ("query", "host"), _LOOPBACK_OR_TLS


def _storage_contradictions(storage: Storage) -> Iterator[tuple[tuple[str, str], str]]:
    """The parts of a storage worker's memory must fit into the whole."""
    series_bytes = storage.max_series * _SERIES_BYTES
    caches_bytes = storage.cache_bytes + storage.compaction_bytes
    want = _PROCESS_BYTES + _HEADS * storage.head_bytes + caches_bytes + series_bytes
    if want > storage.memory_bytes:
        yield (
            ("storage", "memory_bytes"),
            f"want at least {want}: {_PROCESS_BYTES} for the process, {_HEADS} * head_bytes, cache_bytes, "
            f"compaction_bytes, {_SERIES_BYTES} * max_series; or smaller ones of these",
        )


def _mqtt_contradictions(mqtt: Mqtt) -> Iterator[tuple[tuple[str, str], str]]:
    url = _split_url(mqtt.url)
    if url is None or url.scheme not in ("mqtt", "mqtts") or url.username or url.path not in ("", "/"):
        yield ("mqtt", "url"), "want mqtt://HOST:PORT, or mqtts://HOST:PORT for TLS; user and password have settings"
        return
    tls = [name for name in ("ca_file", "cert_file", "key_file") if getattr(mqtt, name)]
    if tls and url.scheme == "mqtt":
        yield ("mqtt", tls[0]), f"is for TLS, but mqtt.url = {mqtt.url!r}; want mqtts:// there"
    if bool(mqtt.cert_file) != bool(mqtt.key_file):
        yield ("mqtt", "cert_file"), f"belongs together with mqtt.key_file = {mqtt.key_file!r}; want both or neither"
    if mqtt.password and not mqtt.username:
        yield ("mqtt", "password"), "needs mqtt.username"
    if mqtt.reconnect_min_s > mqtt.reconnect_max_s:
        yield ("mqtt", "reconnect_min_s"), f"want at most mqtt.reconnect_max_s = {mqtt.reconnect_max_s}"
    if mqtt.share_group and mqtt.broker == "embedded":
        yield ("mqtt", "share_group"), 'the embedded broker shares nothing; want another mqtt.broker, or one bridge'


def _ack_endpoint_contradictions(bridge: Bridge, has_key: bool) -> Iterator[tuple[tuple[str, str], str]]:
    any_port = "want tcp://127.0.0.1:PORT, or * as PORT for any free one"
    yield from _endpoint_contradictions("ack_endpoint", bridge.ack_endpoint, any_port, True, has_key)
    if bridge.ack_advertised:
        one_port = "want tcp://127.0.0.1:PORT, or nothing for ack_endpoint itself"
        yield from _endpoint_contradictions("ack_advertised", bridge.ack_advertised, one_port, False, has_key)
    elif bridge.ack_endpoint.startswith(("tcp://*:", "tcp://0.0.0.0:")):
        yield ("bridge", "ack_endpoint"), "is on all interfaces: bridge.ack_advertised must say which one nodes reach"


def _endpoint_contradictions(
    key: str, endpoint: str, want: str, wildcard: bool, has_key: bool
) -> Iterator[tuple[tuple[str, str], str]]:
    host, colon, port = endpoint.removeprefix("tcp://").rpartition(":")
    if not endpoint.startswith("tcp://") or not colon or not (_is_port(port) or (wildcard and port == "*")):
        yield ("bridge", key), want
    elif not has_key and not is_loopback(host.strip("[]")):
        yield ("bridge", key), _LOOPBACK_OR_KEY


def _split_url(url: str) -> SplitResult | None:
    """The parts of a URL with a host and a possible port, else None."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    return parts if parts.hostname and port != 0 else None


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and 1 <= int(text) <= 65535


def is_loopback(host: str) -> bool:
    """Whether a host name or address means this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
