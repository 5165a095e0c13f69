"""Requests and replies on their way between the threads of a node: the frames of a message behind its route.

Pure: the number of frames in the route, in one byte; the route; the frames.
"""

from collections.abc import Sequence


def join(route: Sequence[bytes], frames: Sequence[bytes]) -> list[bytes]:
    """What to send to another thread."""
    return [len(route).to_bytes(1, "big"), *route, *frames]


def split(joined: Sequence[bytes]) -> tuple[list[bytes], list[bytes]]:
    """Route and frames of what another thread has sent."""
    cut = 1 + joined[0][0]
    return list(joined[1:cut]), list(joined[cut:])
