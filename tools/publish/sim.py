"""Simulated sensors: sensor_1, sensor_2, ... with a temperature and other metrics that look like what sensors send.

Points are numbered 0, 1, 2, ...; number and seed decide a point's series, its value and, in synthetic history, its
timestamp. So a run of N points has N distinct (series, timestamp), and the same seed and start give the same bytes.
Reads the clock only for the timestamps of "now". No I/O.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from tools.publish import columns
from tools.publish.message import Chunk, Outgoing, Template, message, series

US_PER_S: Final = 1_000_000
DAY_US: Final = 86_400 * US_PER_S
STEP_US: Final = 600 * US_PER_S  # how long a machine stays in one state
CHUNK_POINTS: Final = 2000  # at full speed; enough for numpy, little enough to look at the socket in between
CHUNK_S: Final = 0.05  # of points at a given rate

Longs = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Signal:
    """How a metric behaves: base + daily cycle + machine states + noise, rounded to so many decimals."""

    name: str
    base: float
    daily: float
    states: float
    noise: float
    decimals: int


SIGNALS: Final = (
    Signal("temperature", 21.0, 4.0, 0.0, 0.15, 2),
    Signal("humidity", 45.0, -8.0, 0.0, 0.5, 1),
    Signal("pressure", 1013.2, 1.5, 0.0, 0.05, 2),
    Signal("power", 350.0, 60.0, 900.0, 4.0, 1),
    Signal("vibration", 0.4, 0.0, 2.5, 0.05, 3),
    Signal("co2", 600.0, 150.0, 100.0, 6.0, 0),
    Signal("voltage", 230.0, 1.0, 0.0, 0.3, 1),
    Signal("speed", 20.0, 0.0, 1500.0, 1.0, 0),
)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to simulate. Times in microseconds since the epoch.

    rate: points per second, 0 for as fast as can be. count: points in all, 0 for no end. per_message: points of one
    series in one message. start_us: timestamps run from here by step_us per point of a series; None: they are the
    time of sending, never the same twice. columns: payloads are columnar msgpack instead of JSON.
    """

    devices: int
    metrics: int
    rate: float
    count: int
    seed: int
    per_message: int
    start_us: int | None
    step_us: int
    columns: bool = False


class Simulation:
    """The messages of a plan, in chunks. To be iterated once.

    Points go block by block; a block has one message of every series, in order. live: as sensors are that measure
    at a rate; history, and points as fast as can be, can wait.
    """

    def __init__(self, plan: Plan, template: Template, now_us: Callable[[], int]) -> None:
        self.live = plan.rate > 0 and plan.start_us is None
        self._plan = plan
        self._now_us = now_us
        self._last_us = 0  # the latest timestamp of "now" given out
        self._random = np.random.default_rng(plan.seed)
        signals = [signal_of(number) for number in range(plan.metrics)]
        self._names = [(f"sensor_{device}", each.name) for device in range(1, plan.devices + 1) for each in signals]
        self._series = [series(template, *names) for names in self._names]
        self._columns = {
            name: np.tile([float(getattr(signal, name)) for signal in signals], plan.devices)
            for name in ("base", "daily", "states", "noise", "decimals")
        }
        self._scale = 10.0 ** self._columns["decimals"]
        self._phase = self._random.uniform(0.0, 1.2, len(self._series))  # radians: sensors in different rooms

    def __iter__(self) -> Iterator[Chunk]:
        plan = self._plan
        size = self._chunk_points()
        for first in itertools.count(0, size):
            if plan.count and first >= plan.count:
                return
            due_s = first / plan.rate if plan.rate else 0.0
            if due_s:
                yield Chunk(due_s, ())  # so that timestamps of "now" are taken when it is time to send
            end = min(first + size, plan.count) if plan.count else first + size
            yield Chunk(due_s, self._messages(np.arange(first, end)))

    def _chunk_points(self) -> int:
        wanted = self._plan.rate * CHUNK_S if self._plan.rate else CHUNK_POINTS
        return max(1, round(wanted / self._plan.per_message)) * self._plan.per_message

    def _messages(self, numbers: Longs) -> list[Outgoing]:
        per_message = self._plan.per_message
        message_number, sample = np.divmod(numbers, per_message)
        block, which = np.divmod(message_number, len(self._series))
        times = self._times(block * per_message + sample)
        values = self._values(which, times)
        if self._plan.columns:
            return self._columnar(which, times, values)
        texts = self._points(which, times, values)
        owners = [self._series[each] for each in which[::per_message].tolist()]
        if per_message == 1:
            return [Outgoing(owner.topic, text.encode(), 1) for owner, text in zip(owners, texts, strict=True)]
        starts = range(0, len(texts), per_message)
        return [message(owner.topic, texts[at : at + per_message]) for owner, at in zip(owners, starts, strict=True)]

    def _columnar(self, which: Longs, times: Longs, values: Doubles) -> list[Outgoing]:
        found = []
        for at in range(0, len(which), self._plan.per_message):
            part, owner = slice(at, at + self._plan.per_message), which[at]
            payload = columns.payload(*self._names[owner], times[part], values[part])
            found.append(Outgoing(self._series[owner].topic, payload, len(times[part])))
        return found

    def _points(self, which: Longs, times: Longs, values: Doubles) -> list[str]:
        digits = [f"{time:07d}" for time in times.tolist()]  # cut, not divided: half of the work was formatting times
        columns = which.tolist(), digits, values.tolist()
        prefixes = [each.prefix for each in self._series]
        return [
            f'{prefixes[at]}{time[:-6]}.{time[-6:]},"value":{value!r}}}'
            for at, time, value in zip(*columns, strict=True)
        ]

    def _times(self, rounds: Longs) -> Longs:
        """Microseconds. rounds: the how manyeth point of its series each is."""
        if self._plan.start_us is not None:
            return self._plan.start_us + rounds * self._plan.step_us
        first = max(self._now_us(), self._last_us + 1)
        self._last_us = first + len(rounds) - 1
        return np.arange(first, first + len(rounds))

    def _values(self, which: Longs, times: Longs) -> Doubles:
        column = {name: values[which] for name, values in self._columns.items()}
        angle = 2 * np.pi * (times % DAY_US) / DAY_US + self._phase[which]
        exact = column["base"] + column["daily"] * np.sin(angle) + column["states"] * machine_state(which, times)
        noisy = exact + column["noise"] * self._random.standard_normal(len(which))
        rounded: Doubles = np.rint(noisy * self._scale[which]) / self._scale[which]
        return rounded


def signal_of(number: int) -> Signal:
    """The signal of a sensor's metric 0, 1, ...; beyond the named ones they repeat under numbered names."""
    signal = SIGNALS[number % len(SIGNALS)]
    again = number // len(SIGNALS)
    return replace(signal, name=f"{signal.name}_{again + 1}") if again else signal


def machine_state(which: Longs, times: Longs) -> Doubles:
    """0, 1/3, 2/3 or 1: what each series' machine does in its slot of STEP_US, at random but always the same."""
    slot = (times // STEP_US).astype(np.uint64)
    mixed = (slot * np.uint64(0x9E3779B97F4A7C15)) ^ (which.astype(np.uint64) * np.uint64(0xBF58476D1CE4E5B9))
    states: Doubles = ((mixed * np.uint64(0x94D049BB133111EB)) >> np.uint64(62)).astype(np.float64)
    return states / 3
