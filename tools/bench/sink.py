"""A storage node that stores nothing: acks every batch at once. Shows what the bridge costs without storage.

    python -m tools.bench.sink CLUSTER NODE PORT
"""

import random
import sys

from common import bus, protocol
from common.points import PointBatch
from common.protocol import Ack, Header


def run(cluster: str, node_id: str, port: int) -> None:
    """Answer batches and beats for ever."""
    own_bus = bus.Bus()
    pull, _ = own_bus.pull(f"tcp://127.0.0.1:{port}")
    poller = bus.Poller([pull])
    incarnation = random.getrandbits(63) | 1
    acks: dict[str, bus.Socket] = {}
    while True:
        poller.poll(None)
        while (frames := pull.receive()) is not None:
            message = protocol.unpack(frames)
            to = message.header
            if to.reply_to not in acks:
                acks[to.reply_to] = own_bus.push_acks(to.reply_to)
            header = Header(
                protocol.VERSION, cluster, to.sender, node_id, incarnation, 0, to.epoch, to.ring_hash,
                re=to.sequence, re_incarnation=to.incarnation,
            )  # fmt: skip
            if message.kind == protocol.BEAT:
                acks[to.reply_to].send(protocol.pack(protocol.BEAT_ACK, header, {}))
            else:
                acks[to.reply_to].send(protocol.pack(protocol.ACK, header, Ack(len(PointBatch.decode(message.body)))))


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2], int(sys.argv[3]))
