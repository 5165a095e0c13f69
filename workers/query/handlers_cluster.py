"""The cluster for the page: moves and repairs, past rings, dead letters, who asks. Over within 2 s but for history."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final

from common import protocol, tokens
from common.errors import MinitrueError
from common.protocol import BridgeLetters, DeadLetters, DeadLetterSample, DeadLettersReply, JobsReply, JobState
from common.ringstore import HISTORY
from common.timestamps import NS_PER_S
from workers.query.frame import Context, Request, Response, answer
from workers.query.gather import Survey
from workers.query.handlers_health import is_late
from workers.query.handlers_status import version
from workers.query.refusal import Refusal, check_known, whole

HISTORY_SHOWN: Final = 20  # unless asked otherwise
REPAIRS: Final = ("repair", "round", "refill")  # kinds of jobs by which a node gets what it lacks
JOB_FIELDS: Final = tuple(name for name in JobState.__struct_fields__ if name != "unproven")
REPAIR_FIELDS: Final = ("kind", "state", "partitions", "points", "bytes", "seconds", "error")
LETTER_FIELDS: Final = ("bytes", "limit_bytes", "waiting", "error", "uncounted_bytes")


def me(context: Context, asked: Request) -> Response:
    """Whose token this is, and what it allows."""
    check_known(asked.parameters(), (), "parameter")
    token = context.access.token(asked.header("Authorization"))
    allowed = [scope for scope in tokens.SCOPES if token is None or token.allows(scope)]
    return answer(
        {
            "name": token.name if token else "",
            "scopes": allowed,
            "auth": token is not None,
            "version": version(),
            "now": context.now_ns() / NS_PER_S,
        }
    )


def history(context: Context, asked: Request) -> Response:
    """The last rings, the newest first, and what each of them changed."""
    parameters = asked.parameters()
    check_known(parameters, ("limit",), "parameter")
    limit = whole("limit", parameters.get("limit", HISTORY_SHOWN), 1, HISTORY)
    try:
        found = context.stored.history(limit)
    except MinitrueError as error:
        raise Refusal(503, "ring_store", f"the history cannot be read: {error}") from error
    rows = [
        {
            "epoch": past.epoch,
            "saved_at": past.saved_at_s,
            "bytes": past.size_bytes,
            "summary": "; ".join(changes),
            "changes": changes,
        }
        for past, changes in found
    ]
    return answer({"rows": rows})


def moves(context: Context, asked: Request) -> Response:
    """Partitions on their way, and how the jobs that bring them get on; the last repair of each node."""
    check_known(asked.parameters(), (), "parameter")
    plan = context.scatter.plan
    if plan is None:
        raise Refusal(503, "not_ready", context.scatter.ring_fault)
    survey = context.survey(protocol.JOBS, JobsReply)
    driver = context.stored.driver()
    pairs = Counter((move.source, move.target) for move in plan.ring.moves)
    replies: dict[str, JobsReply] = dict(sorted(survey.replies.items()))
    now_s = context.now_ns() / NS_PER_S
    return answer(
        {
            "epoch": plan.ring.epoch,
            "driver": driver.text or None,
            "driver_error": driver.error or None,
            "moves": [
                {"source": source, "target": target, "partitions": count}
                for (source, target), count in sorted(pairs.items(), key=str)
            ],
            "jobs": [
                {"node": node} | {name: getattr(job, name) for name in JOB_FIELDS}
                for node, reply in replies.items()
                for job in reply.jobs
                if job.kind not in REPAIRS or job.ended_s_ago is None
            ],
            "repairs": [{"node": node} | _last_repair(reply.jobs, now_s) for node, reply in replies.items()],
            "missing": _missing(survey),
        }
    )


def dead_letters(context: Context, asked: Request) -> Response:
    """What bridges refused and keep: by bridge and reason, how many and the last ones."""
    check_known(asked.parameters(), (), "parameter")
    survey = context.survey(protocol.DEAD_LETTERS, DeadLettersReply)
    if not survey.epoch:
        raise Refusal(503, "not_ready", context.scatter.ring_fault)
    bridges = freshest(each for reply in survey.replies.values() for each in reply.bridges)
    late_s = context.settings.bridge_late_s
    return answer(
        {
            "rows": [row for told in bridges.values() for row in _rows(told.bridge, told.letters)],
            "bridges": [
                {"bridge": told.bridge, "ready": not is_late(told.age_s, late_s), "age_s": told.age_s}
                | {name: getattr(told.letters, name) for name in LETTER_FIELDS}
                for told in bridges.values()
            ],
            "missing": _missing(survey),
        }
    )


def freshest(told: Iterable[BridgeLetters]) -> dict[str, BridgeLetters]:
    """By bridge, what it told the node that heard it last."""
    by_age = sorted(told, key=lambda each: -each.age_s)  # so the freshest comes last, and stays
    return dict(sorted({each.bridge: each for each in by_age}.items()))


def _rows(bridge: str, letters: DeadLetters) -> list[dict[str, Any]]:
    """A row for each reason, those with most records first."""
    ordered = sorted(letters.counts.items(), key=lambda each: (-each[1], each[0]))
    return [
        {
            "bridge": bridge,
            "reason": reason,
            "count": count,
            "samples": [_sample(each) for each in letters.samples.get(reason, ())],
        }
        for reason, count in ordered
    ]


def _sample(sample: DeadLetterSample) -> Mapping[str, Any]:
    return {
        "time": sample.time_ns / NS_PER_S,
        "topic": sample.topic,
        "payload": sample.payload,
        "payload_bytes": sample.payload_bytes,
        "detail": sample.detail,
        "device": sample.device,
    }


def _last_repair(jobs: Iterable[JobState], now_s: float) -> dict[str, Any]:
    """What is told of the repair that ended last."""
    ended = [(job.ended_s_ago, job) for job in jobs if job.kind in REPAIRS and job.ended_s_ago is not None]
    if not ended:
        return {"last_s": None}
    ago_s, job = min(ended, key=lambda each: each[0])
    return {"last_s": now_s - ago_s} | {name: getattr(job, name) for name in REPAIR_FIELDS}


def _missing(survey: Survey) -> list[dict[str, str]]:
    return [{"node": node, "reason": trouble.reason} for node, trouble in sorted(survey.trouble.items())]
