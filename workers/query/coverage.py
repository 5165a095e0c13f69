"""What an answer speaks of: which partitions were asked and answered, who answered, who did not and why.

An answer that lacks anything is an error unless the client allows it; see docs/http-api.md. Pure: no I/O, no state.
"""

from typing import Any, Final, NoReturn

from msgspec import UNSET, Struct, UnsetType, structs

from common import config, protocol
from workers.query.gather import Gather
from workers.query.refusal import OverLimit, Refusal

MAX_HEADER_CHARS: Final = 2000  # proxies refuse heads of more than 8 KiB


class Missing(Struct):
    """Partitions that nobody answered for. node: who should have, partitions: how many, reason: why it did not."""

    node: str
    partitions: int
    reason: str


class Compared(Struct):
    """What a verified read compared. owners: of each partition, at least; series_joined: in which they differed.

    reason: why the answer is not verified, "" where it is.
    """

    owners: int
    series_joined: int
    reason: str


class Coverage(Struct):
    """What an answer speaks of; see docs/http-api.md. verified, compared: of a verified read. marks_s_ago: while the
    ring store cannot be read, how long ago it was: a node that fell behind since then may have been asked.
    """

    partitions_asked: int
    partitions_answered: int
    complete: bool
    epoch: int
    delete_number: int
    nodes: list[str]
    missing: list[Missing]
    verified: bool | UnsetType = UNSET
    compared: Compared | UnsetType = UNSET
    marks_s_ago: float | UnsetType = UNSET

    def after(self, compared: Compared | None) -> "Coverage":
        """With what a verified read compared, None for any other read."""
        if compared is None:
            return self
        return structs.replace(self, verified=self.complete and not compared.reason, compared=compared)


def headers_of(coverage: Coverage) -> dict[str, str]:
    """What the head of an answer says of it, for formats that have no place for coverage."""
    headers = {"Minitrue-Complete": str(coverage.complete).lower()}
    if coverage.verified is not UNSET:
        headers["Minitrue-Verified"] = str(coverage.verified).lower()
    if coverage.missing:
        told = "; ".join(f"{one.node}: {one.reason}" for one in coverage.missing)[:MAX_HEADER_CHARS]
        headers["Minitrue-Missing"] = "".join(char if " " <= char <= "~" else "?" for char in told)
    return headers


class Incomplete(Refusal):
    """An answer that lacks something, and so is none. timeout_s: when that was for lack of time, how much there was."""

    def __init__(self, error: str, message: str, coverage: Coverage, timeout_s: float | None = None) -> None:
        super().__init__(503, error, message)
        self.coverage = coverage
        self.timeout_s = timeout_s


def judge(gather: Gather[Any], ring_fault: str, allow_partial: bool, limits: config.Query) -> Coverage:
    """The coverage of a question that has ended. Raises Incomplete, or the Refusal that a node's error means.

    ring_fault: why there is no ring, if there is none. limits: by which was asked.
    """
    if gather.error is not None:
        _raise_error(gather.error, limits)
    found = of(gather)
    if not found.complete and not (allow_partial and gather.epoch):
        raise _incomplete(gather, found, ring_fault)
    return found


def of(gather: Gather[Any]) -> Coverage:
    """The coverage of a question, complete or not."""
    complete = gather.complete()
    return Coverage(
        gather.wanted.bit_count(),
        gather.covered.bit_count(),
        complete,
        gather.epoch,
        min((getattr(reply, "delete_number", 0) for reply in gather.replies), default=0),
        sorted(gather.nodes),
        [] if complete else _missing(gather),
        marks_s_ago=round(gather.marks_s_ago, 3) or UNSET,
    )


def merged(first: Coverage, *others: Coverage) -> Coverage:
    """What several questions for one answer speak of together: no more than each of them."""
    worst = first
    for other in others:
        if (other.complete, other.partitions_answered) < (worst.complete, worst.partitions_answered):
            worst = other
    return Coverage(
        worst.partitions_asked,
        worst.partitions_answered,
        worst.complete,
        worst.epoch,
        min(each.delete_number for each in (first, *others)),
        sorted({node for each in (first, *others) for node in each.nodes}),
        worst.missing,
        marks_s_ago=max(each.marks_s_ago or 0.0 for each in (first, *others)) or UNSET,
    )


def _missing(gather: Gather[Any]) -> list[Missing]:
    missing = gather.wanted & ~gather.covered
    return [
        Missing(node, lacking.bit_count(), trouble.reason)
        for node, trouble in sorted(gather.trouble.items())
        if gather.plan is not None and (lacking := missing & gather.plan.owned(node))
    ]


def _incomplete(gather: Gather[Any], coverage: Coverage, ring_fault: str) -> Incomplete:
    if not gather.epoch:
        return Incomplete("not_ready", ring_fault, coverage)
    reasons = "; ".join(f"{one.node}: {one.reason}" for one in coverage.missing)
    lacking = coverage.partitions_asked - coverage.partitions_answered
    text = f"{lacking} of {coverage.partitions_asked} partitions did not answer: {reasons}"
    return Incomplete("incomplete", text, coverage, gather.timeout_s if gather.timed_out else None)


def _raise_error(error: protocol.ErrorReply, limits: config.Query) -> NoReturn:
    if error.error == protocol.ERR_LIMIT:
        limit = error.limit or getattr(limits, error.setting.removeprefix("query."), 0)  # 0: of a node too old to say
        raise OverLimit(error.setting, limit, error.value or None, error.message)
    raise Refusal(500, "internal", f"BUG: a storage node refused our request: {error.message}")
