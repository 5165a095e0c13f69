"""Health, metrics, and what is here. They never wait at the gate, and are over within 2 s."""

from collections.abc import Mapping
from typing import Any

from common import metrics, protocol
from common.protocol import MetricFamily
from workers.query.frame import Context, Request, Response, answer
from workers.query.gather import Trouble


def healthz(context: Context, asked: Request) -> Response:
    """This process is alive."""
    return answer({"status": "ok"})


def readyz(context: Context, asked: Request) -> Response:
    """Whether queries can be answered now, and who says so."""
    survey = context.survey(protocol.STATUS, dict[str, Any])
    nodes = {node: {"ready": True, **status} for node, status in survey.replies.items()}
    nodes |= {node: unready(trouble) for node, trouble in survey.trouble.items()}
    told: dict[str, Any] = {
        "ready": survey.complete(),
        "epoch": survey.epoch,
        "nodes": {node: without_bridges(status) for node, status in sorted(nodes.items())},
        "bridges": bridges(survey.replies, context.settings.bridge_late_s),
    }
    if not survey.epoch:
        told["reason"] = context.scatter.ring_fault
    if context.scatter.ring_trouble:
        told["ring_store"] = context.scatter.ring_trouble
    return answer(told, 200 if survey.complete() else 503)


def bridges(statuses: Mapping[str, Mapping[str, Any]], late_s: float) -> dict[str, Any]:
    """What each bridge told of itself last, and whether it still lives. late_s: one not heard for longer does not."""
    return {bridge: _judged(told, late_s) for bridge, told in sorted(freshest_bridges(statuses).items())}


def unready(trouble: Trouble) -> dict[str, Any]:
    """What is told of a node that did not say how it is. state: of one that is there, and on its way."""
    state = {"state": "opening"} if trouble.code == protocol.ERR_OPENING else {}
    return {"ready": False, "reason": trouble.reason, **state}


def is_late(age_s: float, late_s: float) -> bool:
    """Whether a bridge that was heard so long ago is taken for gone."""
    return age_s > late_s


def without_bridges(status: Mapping[str, Any]) -> dict[str, Any]:
    """A node's status without what it tells of others."""
    return {name: value for name, value in status.items() if name != "bridges"}


def freshest_bridges(statuses: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Every bridge that some node has heard, as the node tells it that heard it last."""
    heard: dict[str, Any] = {}
    for status in statuses.values():
        for bridge, told in status.get("bridges", {}).items():
            if bridge not in heard or told.get("age_s", 0.0) < heard[bridge].get("age_s", 0.0):
                heard[bridge] = told
    return heard


def exposition(context: Context, asked: Request) -> Response:
    """The metrics of this worker, of every node, and of the bridges that they hear."""
    survey = context.survey(protocol.METRICS, protocol.MetricsReply)
    heard = [process for reply in survey.replies.values() for process in reply.processes]
    processes: dict[str, list[MetricFamily]] = {}
    for process in sorted(heard, key=lambda process: -process.age_s):  # so the freshest comes last, and stays
        late = is_late(process.age_s, context.settings.bridge_late_s)
        processes[process.worker] = [_up(0.0)] if late else [_up(1.0), *process.families]
    processes |= {node: [_up(0.0)] for node in survey.trouble}
    own = [*metrics.snapshot(), context.timings.family(), *context.gate.families()]
    processes[context.scatter.name] = [_up(1.0), *own]
    return Response(metrics.render(dict(sorted(processes.items()))), content_type=metrics.CONTENT_TYPE)


def _judged(told: dict[str, Any], late_s: float) -> dict[str, Any]:
    if not is_late(told["age_s"], late_s):
        return {"ready": True, **told}
    return {"ready": False, "reason": f"not heard for {told['age_s']:.0f} s", **told}


def _up(value: float) -> MetricFamily:
    return MetricFamily("minitrue_up", "gauge", "Whether this worker was heard.", [("minitrue_up", {}, value)])
