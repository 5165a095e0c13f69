"""A storage node's process: its command line, its place in the ring, its ports; then running.py takes over.

From the moment the ports are bound somebody answers there: porter.py, until the store is open.

Everything that can be wrong with ring, settings and ports is found before the kernels are loaded.
"""

from pathlib import Path

import click

from common import bus, config, log, process
from common.errors import RingError
from common.ring import Node as RingNode
from common.ring import Ring
from common.ringstore import open_followed, wait_for_ring
from workers.storage.porter import Porter

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
    view = wait_for_ring(open_followed(store_url, settings), stop, settings.cluster.ring_poll_s)
    if view is None:
        return
    place = _place(view.ring, node_id, port)
    directory = Path(data_dir).resolve() if data_dir else settings.data_dir / "storage" / node_id
    node_bus = bus.Bus(bus.load_key(settings))
    pull, _ = node_bus.pull(place.ingest_endpoint)
    router = node_bus.router(place.request_endpoint)
    publisher = node_bus.publisher(place.live_endpoint)
    logger.info("listening", endpoint=place.endpoint)
    with Porter(router, view.ring.cluster, node_id) as porter:
        # Imported here: the kernels take a second to load, and a node that cannot start should say so before.
        from workers.storage import running

        running.run(settings, stop, node_id, directory, view, (node_bus, pull, router, publisher), porter)


def _place(ring: Ring, node_id: str, port: int | None) -> RingNode:
    """Where this node listens: by the ring, or on the port given."""
    if port is not None:
        if not ring.has(node_id):
            logger.warning("not in the ring: owns nothing until it is added", node=node_id, epoch=ring.epoch)
        elif not ring.node(node_id).endpoint.endswith(f":{port}"):
            logger.warning("not where the ring says: nobody will find it", port=port, ring=ring.node(node_id).endpoint)
        return RingNode(node_id, "", f"tcp://127.0.0.1:{port}", "", 1.0, "active")
    if not ring.has(node_id):
        raise RingError(
            f"node {node_id!r} is not in the ring of epoch {ring.epoch}: give --port, or a node of the ring"
        )
    return ring.node(node_id)
