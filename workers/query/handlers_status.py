"""The state of the cluster for people and tools: /api/v1/status and /api/v1/ring. Never tells secrets."""

from importlib import metadata
from typing import Any, Final

from common import clock, protocol
from common.ring import Ring
from workers.query.frame import Context, Request, Response, answer
from workers.query.handlers_health import bridges, unready, without_bridges
from workers.query.refusal import Refusal, check_known, flag

_LIMITS: Final = (
    "threads", "queue", "live_streams", "timeout_s", "max_body_bytes", "page_limit", "max_series", "max_points",
    "max_rows", "max_values", "max_response_bytes",
)  # fmt: skip


def status(context: Context, asked: Request) -> Response:
    """What every node, the bridges that they hear, and this worker say of themselves."""
    check_known(asked.parameters(), (), "parameter")
    survey = context.survey(protocol.STATUS, dict[str, Any])
    nodes = {node: {"ready": True, **without_bridges(told)} for node, told in survey.replies.items()}
    nodes |= {node: unready(trouble) for node, trouble in survey.trouble.items()}
    plan = context.scatter.plan
    found: dict[str, Any] = {
        "ready": survey.complete(),
        "version": version(),
        "cluster": plan.ring.cluster if plan else None,
        "epoch": survey.epoch,
        "delete_number": plan.ring.delete_number if plan else 0,
        "nodes": dict(sorted(nodes.items())),
        "bridges": bridges(survey.replies, context.settings.bridge_late_s),
        "query": _worker(context),
    }
    if not survey.epoch:
        found["reason"] = context.scatter.ring_fault
    return answer(found)


def version() -> str:
    """The version of the program."""
    try:
        return metadata.version("minitrue")
    except metadata.PackageNotFoundError:  # a checkout that was never installed
        return "unknown"


def _worker(context: Context) -> dict[str, Any]:
    """This worker. requests: at the gate now, and refused so far."""
    scatter, gate, query = context.scatter, context.gate, context.settings.query
    return {
        "worker": scatter.name,
        "incarnation": scatter.incarnation,
        "uptime_s": clock.monotonic_s() - context.started_s,
        "requests": {"answered": gate.inside, "beside": gate.here - gate.inside, "refused": gate.refused},
        "asks": dict(scatter.counts),
        "ignored": dict(scatter.ignored),
        "limits": {f"query.{name}": getattr(query, name) for name in _LIMITS},
    }


def ring(context: Context, asked: Request) -> Response:
    """The ring by which this worker asks: who owns how much, and with owners=true which partitions."""
    parameters = asked.parameters()
    check_known(parameters, ("owners",), "parameter")
    plan = context.scatter.plan
    if plan is None:
        raise Refusal(503, "not_ready", context.scatter.ring_fault)
    told = _told(plan.ring)
    if flag("owners", parameters.get("owners")):
        document = plan.ring.document()
        told |= {"owners": document["owners"], "moves": document["moves"]}
    return answer(told | {"behind": {node: reason for node, (reason, _) in sorted(plan.behind.items())}})


def _told(ring: Ring) -> dict[str, Any]:
    owned = {node.id: [0] * ring.width for node in ring.nodes}
    for partition in range(ring.partitions):
        for rank, node in enumerate(ring.owners(partition)):
            owned[node.id][rank] += 1
    return {
        "cluster": ring.cluster,
        "epoch": ring.epoch,
        "hash": ring.hash,
        "partitions": ring.partitions,
        "replication": ring.replication,
        "nodes": [
            {
                "id": node.id,
                "endpoint": node.endpoint,
                "zone": node.zone,
                "weight": node.weight,
                "state": node.state,
                "partitions": sum(owned[node.id]),
                "first_owner_of": owned[node.id][0],
            }
            for node in ring.nodes
        ],
        "delete_number": ring.delete_number,
        "deletes": len(ring.deletes),
    }
