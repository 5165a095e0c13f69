"""A storage node at work: its store, its threads, its metrics.

Owns the threads: the writer (ingest.py), the server (serve.py), the keeper (keeper.py) and the repair (repair.py),
beside the main one, which waits for SIGTERM. When one of them ends on its own the process ends too, so that
supervisord starts it anew. Importing this loads the compiled kernels.
"""

import sys
import threading
from collections.abc import Callable
from pathlib import Path

from common import bus, config, log, metrics, process, protocol
from common.ringstore import RingView
from workers.storage import exchange
from workers.storage.behind import Behind
from workers.storage.exchange import Exchange
from workers.storage.feed import Feed
from workers.storage.here import Here
from workers.storage.ingest import Ingest
from workers.storage.keeper import Keeper
from workers.storage.layout import Layout
from workers.storage.node import Node, Ownership
from workers.storage.orders import Orders
from workers.storage.porter import Porter
from workers.storage.repair import Repair
from workers.storage.serve import Server
from workers.storage.store import OpeningStopped, Store

logger = log.get("storage")


def run(
    settings: config.Settings,
    stop: process.Stop,
    node_id: str,
    directory: Path,
    view: RingView,
    sockets: tuple[bus.Bus, bus.Socket, bus.Router, bus.Publisher],
    porter: Porter,
) -> None:
    """Serve on bound sockets (their bus, PULL, ROUTER, XPUB) from a data directory until `stop`.

    porter: has the ROUTER until everything is ready.
    """
    node_bus, pull, router, publisher = sockets
    ring, behind_of = view.ring, []

    def begin(place: Layout) -> None:
        """Say what the directory lacks before anything else is done with it."""
        behind_of.append(begin_behind(place, node_id, view))

    try:
        store = Store.open(
            directory, ring.cluster, node_id, ring.partitions, settings.storage, stop=stop.is_set, begin=begin,
            tell=porter.tell,
        )  # fmt: skip
    except OpeningStopped as stopped:
        logger.info("stopped", reason=str(stopped))
        return
    try:
        view.hurry()  # the opening may have taken minutes, in which deletes were committed
        view.poll()
        ring, (behind,) = view.ring, behind_of
        node = Node(
            ring.cluster, node_id, Ownership.of(ring, node_id), porter.incarnation, ignored=porter.ignored,
            sequence=porter.sequence,
        )  # fmt: skip
        feed = Feed(publisher, node, store)
        limits = settings.storage
        ingest = Ingest(node_bus, pull, node, store, view, feed, limits.group_bytes, Orders(), limits.fence_s)
        ingest.begin()
        everything = Exchange(store, lambda: protocol.bitmap(range(ring.partitions), ring.partitions))
        keeper = Keeper(node_bus, node, store, everything, behind, limits.drop_grace_s)
        follow(behind, node, keeper.wake)
        here, marks = Here(store, ring.partitions), view.store.direct.marks
        repair = Repair(node_bus, node, here, marks, limits, behind)
        server = Server(
            node_bus, router, node, store, limits.read_threads, ingest.orders, ingest.fence, behind,
            exchange.handlers(Exchange(store, lambda: node.view.held_bitmap)) | repair.handlers(),
            {"forgetting": keeper.status, "repair": repair.status},
        )  # fmt: skip
        _export(node, ingest, server, store)
        repair.export_metrics()
        porter.leave()
        logger.info("ready", directory=str(directory), epoch=ring.epoch)
        _run_threads(stop, {"writer": ingest.run, "server": server.run, "keeper": keeper.run, "repair": repair.run})
    finally:
        store.close()
    logger.info("stopped")


def begin_behind(place: Layout, node_id: str, view: RingView) -> Behind:
    """What a node lacks, claimed and marked, and told of all damage from here on."""
    behind = Behind(place, node_id, view.ring.partitions, view.store.direct)
    behind.begin()
    place.watchers.append(behind.hit_by)
    return behind


def follow(behind: Behind, node: Node, wake: Callable[[], None]) -> None:
    """Let the node refuse what it lacks, and file and mark follow."""

    def changed() -> None:
        node.lack(behind.partitions)
        wake()

    behind.changed = changed
    changed()


def _run_threads(stop: process.Stop, bodies: dict[str, Callable[[process.Stop], None]]) -> None:
    """Run each body in a thread until `stop`, or until one fails; then exit non-zero."""
    failed: list[str] = []

    def guarded(name: str, body: Callable[[process.Stop], None]) -> None:
        try:
            body(stop)
        except Exception:
            logger.exception("BUG: thread failed", thread=name)
            failed.append(name)
        finally:
            stop.set()

    threads = [threading.Thread(target=guarded, args=item, name=item[0], daemon=True) for item in bodies.items()]
    for thread in threads:
        thread.start()
    stop.wait(None)
    for thread in threads:
        thread.join()
    if failed:
        sys.exit(1)


def _export(node: Node, ingest: Ingest, server: Server, store: Store) -> None:
    """Everything is counted in plain ints where it happens and read here when asked."""
    metrics.counter_from("minitrue_storage_points_total", "Points stored and acked.", lambda: ingest.counts.points)
    metrics.counter_from("minitrue_storage_batches_total", "Batches stored and acked.", lambda: ingest.counts.batches)
    metrics.counter_from(
        "minitrue_storage_groups_total", "Group commits, one fdatasync each.", lambda: ingest.counts.groups
    )
    metrics.counter_from(
        "minitrue_storage_batches_refused_total", "Batches refused whole.", lambda: ingest.counts.refused
    )
    metrics.counter_from(
        "minitrue_storage_acks_dropped_total", "Acks that no bridge took.", lambda: ingest.counts.acks_dropped
    )
    metrics.counter_from(
        "minitrue_storage_published_total", "Messages of the live feed, sent to all who hear it.",
        lambda: ingest.feed.published,
    )  # fmt: skip
    metrics.counter_from("minitrue_storage_requests_total", "Requests answered.", lambda: server.counts.requests)
    metrics.counter_from(
        "minitrue_storage_requests_cancelled_total", "Requests given up.", lambda: server.counts.cancelled
    )
    metrics.counter_from(
        "minitrue_storage_request_errors_total", "Requests answered with an error.", lambda: server.counts.errors
    )
    metrics.counter_from(
        "minitrue_frames_ignored_total",
        "Frames that were not for this process, by reason.",
        lambda: {(reason,): count for reason, count in node.ignored.items()},
        labels=("reason",),
    )
    metrics.counter_from(*bus.HANDSHAKES_METRIC, lambda: ingest.sockets.handshakes_failed)
    metrics.gauge_from(
        "minitrue_storage_partitions_behind", "Partitions of which acknowledged points may be missing here.",
        lambda: int(node.view.behind.sum()),
    )  # fmt: skip
    metrics.gauge_from(
        "minitrue_storage_partitions_fenced", "Partitions that are about to move away.",
        lambda: int(node.view.fenced.sum()),
    )  # fmt: skip
    metrics.gauge_from(
        "minitrue_storage_partitions_joining", "Partitions on their way to this node.",
        lambda: int((node.view.written & ~node.view.owned).sum()),
    )  # fmt: skip
    store.export_metrics()
