"""A storage node's process: opens its data directory, then serves until it is told to stop.

Owns the process: two threads (the writer in ingest.py, the server in serve.py) beside the main one, which waits
for SIGTERM. When either thread ends on its own the process ends too, so that supervisord starts it anew.
"""

import sys
import threading
from collections.abc import Callable
from pathlib import Path

import click

from common import bus, config, log, metrics, process
from common.errors import RingError
from common.ring import Node as RingNode
from common.ring import Ring
from common.ringstore import open_store, wait_for_ring
from workers.storage.ingest import Ingest
from workers.storage.node import Node, Ownership
from workers.storage.serve import Server
from workers.storage.store import Store

logger = log.get("storage")


@click.command(context_settings={"token_normalize_func": lambda token: token.replace("_", "-")})
@click.option("--node-id", required=True, help="Id of this node in the ring, such as ing1.")
@click.option("--data-dir", help="Where its data lies; by default storage/NODE_ID under the data directory.")
@click.option(
    "--port", type=click.IntRange(1, 65533), help="First of its three ports; by default the one in the ring document."
)
@click.option("--config", "config_file", help="Configuration file; by default MINITRUE_CONFIG or conf/minitrue.toml.")
def main(node_id: str, data_dir: str | None, port: int | None, config_file: str | None) -> None:
    """Run one storage node in the foreground.

    A node that is not in the ring yet needs --port; it answers requests but owns nothing until it is added.
    """
    process.run(
        node_id,
        "ingestion",
        lambda settings, stop: _serve(settings, stop, node_id, data_dir, port),
        config_file,
    )


def _serve(settings: config.Settings, stop: process.Stop, node_id: str, data_dir: str | None, port: int | None) -> None:
    store_url = settings.cluster.ring_store
    view = wait_for_ring(open_store(store_url, settings), stop, settings.cluster.ring_poll_s)
    if view is None:
        return
    place = _place(view.ring, node_id, port)
    directory = Path(data_dir).resolve() if data_dir else settings.data_dir / "storage" / node_id
    node_bus = bus.Bus()
    pull, _ = node_bus.pull(place.ingest_endpoint)
    router = node_bus.router(place.request_endpoint)
    store = Store.open(directory, view.ring.cluster, node_id, view.ring.partitions, settings.storage)
    try:
        node = Node(view.ring.cluster, node_id, Ownership.of(view.ring, node_id))
        ingest = Ingest(node_bus, pull, node, store, view, settings.storage.group_bytes)
        server = Server(node_bus, router, node, store, settings.storage.read_threads)
        _export(node, ingest, server, store)
        logger.info("ready", endpoint=place.endpoint, directory=str(directory), epoch=view.ring.epoch)
        _run_threads(stop, {"writer": ingest.run, "server": server.run})
    finally:
        store.close()
    logger.info("stopped")


def _place(ring: Ring, node_id: str, port: int | None) -> RingNode:
    """Where this node listens: by the ring, or on the port given."""
    if port is not None:
        return RingNode(node_id, "", f"tcp://127.0.0.1:{port}", "", 1.0, "active")
    if not ring.has(node_id):
        raise RingError(
            f"node {node_id!r} is not in the ring of epoch {ring.epoch}: give --port, or a node of the ring"
        )
    return ring.node(node_id)


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
    metrics.counter_from("minitrue_storage_requests_total", "Requests answered.", lambda: server.counts.requests)
    metrics.counter_from(
        "minitrue_storage_request_errors_total", "Requests answered with an error.", lambda: server.counts.errors
    )
    metrics.counter_from(
        "minitrue_frames_ignored_total",
        "Frames that were not for this process, by reason.",
        lambda: {(reason,): count for reason, count in node.ignored.items()},
        labels=("reason",),
    )
    store.export_metrics()
