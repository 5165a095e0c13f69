"""When nothing was found: no points in the range, or no such series? The second is refused, saying what is unknown."""

from typing import Final

from common import protocol
from common.match import Match, Pattern, exact
from common.protocol import DescribeReply, DescribeRequest, SeriesReply, SeriesRequest
from common.series import Series, parse_key, series_key
from workers.query.frame import Context
from workers.query.gather import Gather
from workers.query.refusal import Refusal, shown

HINT_KEYS: Final = 1000  # series looked at to say which part of an unknown series is unknown
HINT_NAMES: Final = 10  # of them named in the text


def check(context: Context, match: Match, timeout_s: float) -> None:
    """No series answered. Raises Refusal where none matches, naming the field at fault."""
    timeout_s = max(0.001, timeout_s)
    devices, metrics = exact(match.device_id), exact(match.metric_name)
    tags = _exact_tags(match)
    plain = devices is not None and metrics is not None and len(devices) == len(metrics) == 1
    if plain and devices and metrics and (match.tags is None or tags is not None) and not match.more_tags:
        _check_exact(context, devices[0], metrics[0], tags, timeout_s)
    else:
        _check_patterns(context, match, timeout_s)


def _exact_tags(match: Match) -> dict[str, str] | None:
    """The tags that a series must have, where they are single texts."""
    if match.tags is None:
        return None
    texts = {name: exact(patterns) for name, patterns in match.tags.items()}
    single = {name: text[0] for name, text in texts.items() if text and len(text) == 1}
    return single if len(single) == len(texts) else None


# One device and metric


def _check_exact(context: Context, device: str, metric: str, tags: dict[str, str] | None, timeout_s: float) -> None:
    if _exists(context, device, metric, tags, timeout_s):
        return
    listing = _listing(SeriesRequest(b"", b"", HINT_KEYS, device), timeout_s)
    context.gather(listing)
    known = [parse_key(key) for reply in listing.replies for key in reply.keys]
    raise _unknown_series(device, metric, tags, known)


def _exists(context: Context, device: str, metric: str, tags: dict[str, str] | None, timeout_s: float) -> bool:
    key = None if tags is None else series_key(device, metric, tags)
    after = b"" if key is None else just_below(key)
    listing = _listing(SeriesRequest(b"", after, 1, device, metric), timeout_s)
    context.gather(listing)
    return any(reply.keys and (key is None or key in reply.keys) for reply in listing.replies)


def _listing(whole: SeriesRequest, timeout_s: float) -> Gather[SeriesReply]:
    def ask(bitmap: bytes) -> SeriesRequest:
        return SeriesRequest(bitmap, whole.after, whole.limit, whole.device_id, whole.metric_name)

    return Gather(protocol.SERIES, SeriesReply, lambda plan: plan.everything, ask, timeout_s)


def just_below(key: bytes) -> bytes:
    """The highest bytes below a series key that matter: no other key lies between the two."""
    if key[-1] == 0:
        return key[:-1]
    return key[:-1] + bytes([key[-1] - 1]) + b"\xff" * 8  # eight 0xff are nowhere in msgpack text


def _unknown_series(device: str, metric: str, tags: dict[str, str] | None, of_device: list[Series]) -> Refusal:
    """Says which part of an unknown series is unknown. of_device: what its device has."""
    known = sorted({series.metric_name for series in of_device})
    if not known:
        return Refusal(404, "unknown_series", f"no series has device_id {shown(device)}", "device_id")
    if tags is None or metric not in known:
        names = ", ".join(map(shown, known[:HINT_NAMES])) + (", ..." if len(known) > HINT_NAMES else "")
        text = f"device_id {shown(device)} has no metric_name {shown(metric)}, it has {names}"
        return Refusal(404, "unknown_series", text, "metric_name")
    wanted = f"exactly the tags {shown(tags)}" if tags else "no tags"
    text = f"{shown(device)} {shown(metric)} has no series with {wanted}; leave tags out to ask all of its series"
    return Refusal(404, "unknown_series", text, "tags")


# Patterns


def _check_patterns(context: Context, match: Match, timeout_s: float) -> None:
    if not _matches(context, Match(match.device_id), timeout_s):
        text = f"no series has a device_id that matches {_told(match.device_id)}"
        raise Refusal(404, "unknown_series", text, "device_id")
    if not _matches(context, Match(match.device_id, match.metric_name), timeout_s):
        text = f"no device that matches {_told(match.device_id)} has a metric_name that matches "
        raise Refusal(404, "unknown_series", text + _told(match.metric_name), "metric_name")
    if not _matches(context, match, timeout_s):
        text = "no series of these devices and metrics has such tags"
        if not match.more_tags:
            text += " and no others; more_tags: true allows others beside those named"
        raise Refusal(404, "unknown_series", text, "tags")


def _matches(context: Context, match: Match, timeout_s: float) -> bool:
    def ask(bitmap: bytes) -> DescribeRequest:
        return DescribeRequest(bitmap, match, None, None, b"", 1, False)

    gather = Gather(protocol.DESCRIBE, DescribeReply, lambda plan: plan.wanted_by(match), ask, timeout_s)
    context.gather(gather)
    return any(reply.keys for reply in gather.replies)


def _told(patterns: tuple[Pattern, ...]) -> str:
    signs = {"regex": "~"}
    texts = [shown(signs.get(pattern.kind, "") + pattern.text) for pattern in patterns]
    return " or ".join(texts[:HINT_NAMES]) + (" or ..." if len(texts) > HINT_NAMES else "") or '"*"'
