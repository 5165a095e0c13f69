"""Counts that are taken while points flow through broker, bridge and nodes."""

from typing import Any

from tests.pipeline import client
from tests.support import wait_until


def test_a_count_never_goes_backwards_and_holds_what_was_acknowledged_before_it_was_asked(make_cluster, make_flow):
    # No node is taken for down because the machine is busy: what is acknowledged by way of a spool an answer is only
    # sure to speak of, or to miss aloud, a second later.
    patient = {"bus.heartbeat_s": 5.0, "bridge.ack_timeout_s": 30.0}
    cluster = make_cluster(nodes=3, query=True, settings={"storage.head_rows": 1024, **patient}).start()
    flow = make_flow(cluster, bad_every=0)
    asked: dict[str, Any] = {"device_id": "*", "metric_name": "m", "operation": ["count", "sum"]}
    seen = 0
    for _ in range(60):
        flow.send(50, points=1)
        acked = cluster.bridge.acked
        status, answer = client.ask(cluster.http, **asked)
        if status == 404:  # nothing has arrived yet
            assert (seen, acked) == (0, 0)
            continue
        assert status == 200, answer
        assert answer["count"] >= max(seen, acked), (seen, acked, answer)
        seen = answer["count"]
    flow.wait_acked()
    values = [value for points in flow.points.values() for value in points.values()]
    want = {"count": len(values), "sum": sum(values)}
    wait_until(lambda: client.ask(cluster.http, **asked)[1].get("result") == want, 30, f"the answer to be {want}")
