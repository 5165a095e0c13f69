"""What a benchmark found: a figure of ours, those of peers in the same run, and what it should be."""

import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple

Rule = Literal["ratio", "times", "most", "least"]
_WORDS: Final = {"ratio": "x at most", "times": "x at least", "most": "at most", "least": "at least"}
_DIGITS: Final = 4
NO_PEERS: Final[Mapping[str, float]] = MappingProxyType({})


class Bar(NamedTuple):
    """ratio, times: ours over the first peer's is at most, at least the limit; most, least: our own figure is."""

    rule: Rule
    limit: float


class Finding(NamedTuple):
    """One figure. peers: by name, the one to compare with first."""

    of: str
    what: str
    unit: str
    ours: float
    peers: Mapping[str, float] = NO_PEERS
    bar: Bar | None = None

    @property
    def ratio(self) -> float | None:
        """Ours over the first peer's."""
        return next((self.ours / each for each in self.peers.values() if each), None)

    @property
    def met(self) -> bool | None:
        """Whether it is as it should be; None without a bar, or without the peer it speaks of."""
        figure = self.ratio if self.bar and self.bar.rule in ("ratio", "times") else self.ours
        if self.bar is None or figure is None:
            return None
        return figure >= self.bar.limit if self.bar.rule in ("least", "times") else figure <= self.bar.limit

    def line(self) -> str:
        """For people."""
        text = f"{self.of:28} {self.what:30} {number(self.ours):>9} {self.unit:9}"
        for name, figure in self.peers.items():
            text += f" {name} {number(figure)}"
        if self.ratio is not None:
            text += f", ratio {self.ratio:.2f}"
        if self.bar is not None:
            text += f"  [{number(self.bar.limit)} {_WORDS[self.bar.rule]}: {_VERDICTS[self.met]}]"
        return text

    def record(self) -> dict[str, Any]:
        """For programs."""
        bar = None if self.bar is None else self.bar._asdict()
        return {**self._asdict(), "peers": dict(self.peers), "bar": bar, "ratio": self.ratio, "met": self.met}


_VERDICTS: Final = {True: "met", False: "MISSED", None: "no peer"}


def number(figure: float) -> str:
    """A figure with as many digits as say something."""
    return f"{figure:,.0f}" if abs(figure) >= 10**_DIGITS else f"{figure:.{_DIGITS}g}"


def times_ms(work: Callable[[], Any], rounds: int) -> list[float]:
    """How long each call of a function takes, shortest first."""
    taken: list[float] = []
    for _ in range(rounds):
        begin_s = time.perf_counter()
        work()
        taken.append(1e3 * (time.perf_counter() - begin_s))
    return sorted(taken)
