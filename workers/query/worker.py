"""The query worker as processes: a parent that starts, watches and stops, and a child that answers.

granian forks. Its child would outlive a killed parent and go on answering on the port, so the child holds the
reading end of a pipe whose only writer is the parent, and ends at once when that closes. Everything with threads
or sockets is made in the child, after the fork.
"""

import os
import resource
import signal
import socket
import ssl
import stat
import threading
import time
from pathlib import Path
from typing import Any, Final, NoReturn

import click
import msgspec
from granian.constants import HTTPModes, Interfaces, SSLProtocols
from granian.http import HTTP1Settings
from granian.log import LogLevels
from granian.server.mp import MPServer

from common import bus, clock, config, log, metrics, private, process
from common.errors import ConfigError, MinitrueError
from common.ringstore import open_followed, open_store
from workers.query import http
from workers.query.access import Access
from workers.query.frame import Context
from workers.query.live import Live
from workers.query.scatter import Scatter

MARKS_S: Final = 0.25  # between looks at a ring store on other machines: an answer speaks of a second before it
PORT_WAIT_S: Final = 3.0  # a killed predecessor's child is gone within one
PORT_RETRY_S: Final = 0.05
STOP_WAIT_S: Final = 3  # for requests that are being answered when the worker is stopped
BACKLOG: Final = 1024  # connections that wait to be accepted
# Open at once; those beyond wait in the backlog, health among them (measured: with granian's own bound, which is the
# backlog, 1,100 silent clients kept /healthz from being answered at all). Each takes a descriptor.
CONNECTIONS: Final = 10_000
OTHER_DESCRIPTORS: Final = 256  # files, sockets to storage nodes, ZeroMQ's own
HEADER_TIMEOUT_MS: Final = 10_000  # for a request's line and headers: a client that says nothing costs no thread
HEADER_BYTES: Final = 128 << 10  # line and headers; a connection may buffer as much, so 1,000 of them 128 MB
LISTEN_WAIT_S: Final = 10.0  # for the listening socket to be there
STALL_MS: Final = 60_000  # a client that takes (nearly) nothing of its answer for so long is disconnected by the kernel
SPARE_THREADS: Final = 8  # for health and for refusals, beside the requests that are answered and those that wait

logger = log.get("query")


class PortTaken(MinitrueError):
    """Another process listens where this worker should."""


@click.command(context_settings={"token_normalize_func": lambda token: token.replace("_", "-")})
@click.option("--port", type=click.IntRange(1, 65535), help="Port to listen on, instead of query.port.")
@click.option("--config", "config_file", type=click.Path(), help="Instead of MINITRUE_CONFIG or conf/minitrue.toml.")
def main(port: int | None, config_file: str | None) -> None:
    """Answer queries over HTTP, from all storage nodes.

    Exit codes: 0 stopped, 1 error, 78 left out by MINITRUE_MODE.
    """

    def body(settings: config.Settings, stop: process.Stop) -> None:
        query = settings.query if port is None else msgspec.structs.replace(settings.query, port=port)
        run(msgspec.structs.replace(settings, query=query), stop)

    process.run("query", "query", body, config_file)


def run(settings: config.Settings, stop: process.Stop) -> None:
    """Serve until stopped. Raises MinitrueError when that cannot begin or ends by itself."""
    store = open_store(settings.cluster.ring_store, settings)
    if not store.remote:  # else it may be away for a while
        store.load()  # an invalid ring is told now, in one line; a missing one may still come
    address = _address(settings.query.host)
    settings = msgspec.structs.replace(settings, query=msgspec.structs.replace(settings.query, host=address))
    key = bus.load_key(settings)
    Access(settings)  # tokens that cannot be used are told now, too
    _check_tls(settings)
    if not _wait_for_port(settings.query.host, settings.query.port, stop):
        return
    server = _server(settings)
    server.on_startup(lambda: signal.raise_signal(signal.SIGTERM) if stop.is_set() else None)
    reader, writer = os.pipe()  # the writer stays open here for as long as this process lives
    parent = os.getpid()

    def load(*_: Any) -> http.App:
        _end_with_parent(reader, writer, parent)
        threading.Thread(target=_drop_stalled, args=(settings.query.port,), name="stalled", daemon=True).start()
        return _application(settings, key)

    try:
        server.serve(target_loader=load, wrap_loader=False)
    except SystemExit as error:
        if not server.interrupt_signal:
            raise MinitrueError("the process that answers has ended by itself") from error
    logger.info("stopped")


def _server(settings: config.Settings) -> MPServer:
    query = settings.query
    return MPServer(
        "query",
        address=query.host,
        port=query.port,
        interface=Interfaces.WSGI,
        workers=1,
        blocking_threads=query.threads + query.queue + query.live_streams + SPARE_THREADS,
        backlog=BACKLOG,
        backpressure=_connections(),
        http=HTTPModes.http1,
        http1_settings=HTTP1Settings(header_read_timeout=HEADER_TIMEOUT_MS, max_buffer_size=HEADER_BYTES),
        log_level=LogLevels.error,
        log_dictconfig={"loggers": {}},  # its records go where ours go
        workers_kill_timeout=STOP_WAIT_S,
        ssl_cert=settings.path(query.cert_file) if query.cert_file else None,
        ssl_key=settings.path(query.key_file) if query.key_file else None,
        ssl_protocol_min=SSLProtocols.tls12,
    )


def _address(host: str) -> str:
    """The address of the host to listen on, IPv4 where it has both: granian takes no names. Raises ConfigError."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"query.host = {host!r} has no address: {error}") from error
    address = str(min(found, key=lambda each: each[0] != socket.AF_INET)[4][0])
    if config.is_loopback(host) and not config.is_loopback(address):  # what its name promised
        raise ConfigError(f"query.host = {host!r} is {address} here, which is no loopback address: name the address")
    return address


def _connections() -> int:
    """How many connections may be open: as many as there are descriptors for. Raises this process's soft limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CONNECTIONS + OTHER_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return CONNECTIONS if soft == resource.RLIM_INFINITY else max(64, min(CONNECTIONS, soft - OTHER_DESCRIPTORS))


def _check_tls(settings: config.Settings) -> None:
    """Raise ConfigError where certificate and key cannot be used; granian would say so in a traceback."""
    query = settings.query
    if not query.cert_file:
        return
    cert, key = settings.path(query.cert_file), settings.path(query.key_file)
    private.read(key, "query.key_file", closed_to=0o007)  # a group may read it, as that of certificates does
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password=lambda: "")  # never asks for one
    except (OSError, ValueError) as error:
        reason = error.reason if isinstance(error, ssl.SSLError) and error.reason else error
        raise ConfigError(
            f"query.cert_file {cert}, query.key_file {key}: {reason}; want a certificate chain and its key, PEM, "
            "not encrypted"
        ) from error


# The parent, before the fork


def _wait_for_port(host: str, port: int, stop: process.Stop) -> bool:
    """Wait until nobody listens on the port; False when stopped meanwhile. Raises PortTaken.

    granian sets SO_REUSEPORT, so without this look two workers would share a port unnoticed. Connections of a
    predecessor in TIME_WAIT are no obstacle.
    """
    tries = int(PORT_WAIT_S / PORT_RETRY_S)
    for attempt in range(tries + 1):
        fault = _port_fault(host, port)
        if fault is None:
            return True
        if attempt == tries or not isinstance(fault, OSError):
            break
        if stop.wait(PORT_RETRY_S):
            return False
    raise PortTaken(f"cannot listen on {host}:{port} (query.host, query.port): {fault}")


def _port_fault(host: str, port: int) -> OSError | None:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except OSError as error:
        return error
    return None


# The child, after the fork


def _end_with_parent(reader: int, writer: int, parent: int) -> None:
    """Watch the parent from a thread of its own; end this process at once when it is gone."""
    os.close(writer)

    def watch() -> NoReturn:
        os.read(reader, 1)  # nothing is ever written: this returns when the last writer is gone
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
    if os.getppid() != parent:
        os._exit(1)


def _drop_stalled(port: int) -> None:
    """Have the kernel end connections whose client reads nothing; those accepted from now on inherit it.

    granian makes the listening socket itself, after it has loaded the application, and shows it to nobody.
    """
    deadline_s = clock.monotonic_s() + LISTEN_WAIT_S
    while clock.monotonic_s() < deadline_s:
        if any(_limit_stalls(int(each.name), port) for each in Path("/proc/self/fd").iterdir()):
            return
        time.sleep(PORT_RETRY_S)
    logger.warning("no listening socket found, clients that stall are kept", port=port)


def _limit_stalls(descriptor: int, port: int) -> bool:
    """Whether a descriptor is the socket that listens on the port; it then drops who stalls."""
    try:
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            return False
        with socket.socket(fileno=os.dup(descriptor)) as found:
            internet = found.family in (socket.AF_INET, socket.AF_INET6)
            if not internet or not found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                return False
            if found.getsockname()[1] != port:
                return False
            found.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, STALL_MS)
            return True
    except OSError:
        return False  # closed meanwhile


def _application(settings: config.Settings, key: bus.Key | None) -> http.App:
    store = open_followed(settings.cluster.ring_store, settings, min(settings.cluster.ring_poll_s, MARKS_S))
    scatter = Scatter(f"query-{settings.query.port}", store, settings.cluster.ring_poll_s, key)
    scatter.start()
    _export(scatter)
    context = Context(scatter, settings)
    _export_live(context.live)
    logger.info("answering", host=settings.query.host, port=settings.query.port)
    return http.make_app(context)


def _export(scatter: Scatter) -> None:
    """Everything is counted in plain ints where it happens, and read when asked."""
    metrics.counter_from(
        "minitrue_frames_ignored_total",
        "Frames that were not for this process, by reason.",
        lambda: {(reason,): count for reason, count in list(scatter.ignored.items())},
        labels=("reason",),
    )
    metrics.counter_from(*bus.HANDSHAKES_METRIC, lambda: scatter.handshakes_failed)
    metrics.counters_from(
        "minitrue_query_asks",
        {
            "sent": "Requests sent to storage nodes.",
            "messages": "Messages that carried them: under load several requests share one.",
            "not_sent": "Requests that a node's connection did not take.",
            "lost": "Requests in flight when their connection broke.",
            "expired": "Requests that were not answered in time.",
            "cancelled": "Cancels sent to nodes whose answer came too late.",
        },
        lambda: scatter.counts,
    )


def _export_live(live: Live) -> None:
    metrics.gauge_from("minitrue_live_streams", "Live streams that are open.", lambda: live.streams)
    metrics.counters_from(
        "minitrue_live",
        {
            "points": "Points handed to live streams; streams that want the same count once.",
            "lost": "Times that something a node had published was missed.",
            "dropped": "Live streams ended because their reader was too slow.",
            "ignored": "Frames on the live feed that were not a node's points.",
        },
        lambda: live.counts,
    )
