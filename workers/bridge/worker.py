"""The bridge's process: one thread, one loop, from MQTT to the storage nodes and back.

Owns the wiring, the loop, the clock and the bridge's directory (<data>/bridge/<id>, locked, so that two bridges of
one id cannot run on a machine). Each turn: take acks, look at the ring, read MQTT once, close the batches that are old
enough, send, make the dead letter durable, send the PUBACKs that became due.

Memory is bounded by bridge.pending_bytes: beyond it the bridge reads nothing from the broker until owners have
taken what it holds. At QoS 1 the broker stops sending earlier, at mqtt.receive_maximum unacknowledged messages.
"""

import os
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import click
import msgspec
from prometheus_client import Histogram

from common import bus, clock, config, metrics, process
from common.errors import StorageError
from common.files import DirectoryLock, make_directory
from common.log import get as get_logger
from common.points import PointBatch
from common.protocol import Beat
from common.ringstore import RingView, open_followed, wait_for_ring
from common.series import parse_key
from common.timestamps import NS_PER_S
from workers.bridge import clockgate, deadletter, exports, replay, spool
from workers.bridge.batch import Batch, Message
from workers.bridge.clockgate import ClockGate
from workers.bridge.deadletter import DeadLetter, Record
from workers.bridge.delivery import Delivery
from workers.bridge.intake import Intake
from workers.bridge.mqtt import Link
from workers.bridge.payload import BUG, STORAGE, Refusal
from workers.bridge.replay import Outcome, Replay
from workers.bridge.skew import Skew
from workers.bridge.spool import Spools
from workers.bridge.watchdog import Watchdog

IDLE_S: Final = 0.1  # longest wait of a turn: half of the time between beats to a node that is away
BLOCKED_S: Final = 0.002  # a turn's wait while the socket to a node that is up is full; acks end it earlier
REPLAY_UNTIL: Final = 0.5  # of pending_bytes
DEVICES_SHOWN: Final = 50
CONFIRM_S: Final = 1.0  # for the ring store to be looked at once more, at the end
STOP_S: Final = 3.0  # for acks after the last point was taken in; supervisord waits longer
STOP_SPOOL_BYTES: Final = 16 << 20  # spooled then: what a slow disk writes in the time that is left
RESUME_AT: Final = 0.8  # of pending_bytes: reading goes on there
ACKS_PER_TURN: Final = 1000
SET_BACK_NS: Final = NS_PER_S  # a clock set back by more is believed: else all arrivals would be at one moment, for
# as long as it was wrong. Less is daily correction, and soon over
CLUSTER_CHARS: Final = 8  # of the cluster's id, in the MQTT client id

logger = get_logger("bridge")

_latency = Histogram(
    "minitrue_bridge_store_seconds",
    "From a batch's first point to its owner's durable ack.",
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 60.0),
    registry=metrics.REGISTRY,
)


@click.command(context_settings={"token_normalize_func": lambda token: token.replace("_", "-")})
@click.option("--broker", help="URL of the MQTT broker, such as mqtt://127.0.0.1:1883; by default mqtt.url.")
@click.option("--id", "bridge_id", help="Name of this bridge, unique in the cluster; by default bridge.id.")
@click.option("--config", "config_file", help="Configuration file; by default MINITRUE_CONFIG or conf/minitrue.toml.")
def main(broker: str | None, bridge_id: str | None, config_file: str | None) -> None:
    """Run one bridge in the foreground."""
    for option, variable in ((broker, "MINITRUE__MQTT__URL"), (bridge_id, "MINITRUE__BRIDGE__ID")):
        if option is not None:
            os.environ[variable] = option  # checked with the other settings, and explained if wrong
    process.run(bridge_id or "bridge", "ingestion", _run, config_file)


def _run(settings: config.Settings, stop: process.Stop) -> None:
    directory = settings.data_dir / "bridge" / settings.bridge.id
    try:
        make_directory(directory)
    except OSError as error:
        raise StorageError(f"bridge directory {directory}: {error.strerror}: {error.filename}") from error
    lock = DirectoryLock(directory)
    try:
        store = open_followed(settings.cluster.ring_store, settings)
        view = wait_for_ring(store, stop, settings.cluster.ring_poll_s)
        limits = settings.bridge.dead_letter_file_bytes, settings.bridge.dead_letter_bytes
        dead_letter = DeadLetter(directory / deadletter.FOLDER, *limits)
        if view is not None:
            spools = Spools(
                directory / spool.FOLDER, store, settings.bridge.id, settings.bridge.spool_bytes,
                confirmed_s=lambda: view.confirmed_s, hurry=view.hurry,
            )  # fmt: skip
            Bridge(settings, view, dead_letter, spools).run(stop)
    finally:
        lock.release()


class Bridge:
    """The loop and what it turns. Belongs to the main thread.

    link: the broker's side. counts: messages, points and payload_bytes taken in.
    """

    def __init__(self, settings: config.Settings, view: RingView, dead_letter: DeadLetter, spools: Spools) -> None:
        """Raises ConfigError, BusError."""
        ring = view.ring
        self._settings = settings
        self._view = view
        self._dead_letter = dead_letter
        self._spools = spools
        self.counts: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()  # by code, counted when refused
        self._started_s = clock.wall_ns() / NS_PER_S
        self._last_arrival_ns = 0
        self._latest_ns = 0  # the skew gate of this turn
        self._messages_seen = 0
        self._reading = True
        self._beat_body = b""
        self._beat_made_s = float("-inf")
        self._bus = bus.Bus(bus.load_key(settings))
        self._acks, reply_to = self._bus.pull(settings.bridge.ack_endpoint)
        self._delivery = Delivery(
            settings,
            random.getrandbits(63) | 1,
            ring,
            self._bus.push,
            spools,
            self._refuse_rows,
            self._refuse_batch,
            clock.monotonic_s(),
            on_stored=_latency.observe,
            hurry=view.hurry,
        )
        self._delivery.reply_to = settings.bridge.ack_advertised or reply_to
        self._intake = Intake(settings, ring.partitions, self._arrival_ns)
        directory = settings.data_dir / "bridge" / settings.bridge.id
        self._replay = Replay(directory / replay.FOLDER, self._receive_again, dead_letter.know)
        client_id = settings.mqtt.client_id or f"minitrue-{ring.cluster[:CLUSTER_CHARS]}-{settings.bridge.id}"
        self.link = Link(settings, client_id, self._receive, directory)
        self._clock_gate = ClockGate(directory / clockgate.FILE_NAME)
        self._watchdog = Watchdog(
            settings.mqtt, self.link, self._clock_gate, self._intake.routes.routes, self._withholding
        )
        self._skew = Skew()
        self._poller = bus.Poller([self._acks])
        self._watched: tuple[Any, bool] | None = None  # the MQTT socket in the poller, and whether for writing
        self._export()

    def run(self, stop: process.Stop) -> None:
        """Turn until `stop`, then bring in what can be brought in within STOP_S."""
        self._poller.register(stop)
        logger.info("ready", id=self._settings.bridge.id, broker=self._settings.mqtt.url, epoch=self._view.ring.epoch)
        while not stop.is_set():
            self._turn()
        self._poller.unregister(stop)
        self._finish()
        logger.info("stopped")

    # One turn.

    def _turn(self) -> None:
        ready = self._poller.poll(self._timeout_s())
        now = clock.monotonic_s()
        if self._acks in ready:
            self._take_acks(now)
        ring = self._view.poll()  # before points come in: after a stop, what was published behind a delete is here
        if ring is not None:
            self._delivery.adopt(ring)
            self._beat_made_s = float("-inf")
        self._latest_ns = self._gate_ns()
        self._move_mqtt(self._watched is not None and self._watched[0] in ready)
        self._clock_gate.tick(now, self.counts["messages"])
        self._replay.tick(self._has_room)
        self._push(now, force=False)
        if self._clock_gate.is_open:
            self.link.tick(now)
        self._watchdog.tick(now, self.counts["messages"])
        self._watch()

    def _push(self, now: float, force: bool) -> None:
        """Everything that moves points on and lets PUBACKs go."""
        self._delivery.flush(now, force)
        self._delivery.tick(now, self._beat)
        self._spools.flush(now)
        self._spools.tick(now)
        self._dead_letter.flush()
        self.link.acknowledge()

    def _timeout_s(self) -> float:
        connection = self.link.connection
        if connection is not None and connection.has_unread:
            return 0.0
        if self._replay.is_eager and self._has_room:
            return 0.0
        if self._delivery.is_blocked:
            return BLOCKED_S
        if self._delivery.has_open:
            return min(IDLE_S, self._settings.bridge.linger_ms / 1000)
        return IDLE_S

    def _take_acks(self, now: float) -> None:
        for _ in range(ACKS_PER_TURN):
            frames = self._acks.receive()
            if frames is None:
                return
            self._delivery.receive(frames, now)

    def _move_mqtt(self, ready: bool) -> None:
        connection = self.link.connection
        if connection is None:
            return
        if connection.wants_write:
            connection.write()
        if ready or connection.has_unread:
            connection.read()
        self._skew.turn(self.counts["messages"] - self._messages_seen)
        self._messages_seen = self.counts["messages"]

    @property
    def _held_bytes(self) -> int:
        return self._delivery.memory_bytes + self._spools.gathered_bytes + self._dead_letter.gathered_bytes

    @property
    def _has_room(self) -> bool:
        """Whether dead letters may be replayed: most of the memory is for what comes in."""
        limit = self._settings.bridge.pending_bytes * REPLAY_UNTIL
        return self._reading and self._clock_gate.is_open and self._held_bytes < limit

    def _watch(self) -> None:
        """Have the poller wait for what the link wants now, and stop or go on reading as memory allows."""
        held = self._held_bytes
        limit = self._settings.bridge.pending_bytes
        reading = held < (limit if self._reading else limit * RESUME_AT)
        if reading != self._reading:
            self._reading = reading
            self.link.set_reading(reading)
            logger.warning("reading goes on" if reading else "holding as much as allowed, reading stops", bytes=held)
        wanted = self.link.pollable()
        if wanted != self._watched:
            if self._watched is not None:
                self._poller.unregister(self._watched[0])
            if wanted is not None:
                self._poller.register(wanted[0], write=wanted[1])
            self._watched = wanted

    # Messages.

    def _receive(self, message: Message, body: bytes) -> None:
        """Take one message in. The hot path."""
        counts = self.counts
        counts["messages"] += 1
        counts["payload_bytes"] += len(body)
        try:
            points, refusals = self._intake.decode(message.topic, message.flags, body, self._latest_ns)
        except Exception as error:  # of ours, then: the broker would send the message again after each crash, for ever
            points, refusals = [], [_broke_down(body, error)]
        counts["points"] += len(points)
        self._delivery.add(message, points)
        if self._skew.due:
            self._skew.due -= 1
        else:
            self._skew.sample(points, clock.wall_ns())
        for refusal in refusals:
            self._refuse(message, refusal)

    def _receive_again(self, record: Record, message: Message) -> Outcome:
        """Take a dead letter in, by the configuration of now. Refused as a whole again it stays as it was kept."""
        try:
            points, refusals = self._intake.decode_record(record, self._latest_ns)
        except Exception as error:  # of ours: the next start would replay it again, for ever
            points, refusals = [], [_broke_down(record.payload, error)]
        self.counts["points"] += len(points)
        self._delivery.add(message, points)
        for refusal in refusals:
            if refusal.payload == record.payload:
                self._dead_letter.append(record, message, repeat=True)
            else:
                self._refuse(message, refusal)
        return Outcome(len(points), [refusal.code for refusal in refusals])

    def _gate_ns(self) -> int:
        """The latest time that a point may bear. The clock gate has seen to it that the clock is plausible."""
        return clock.wall_ns() + int(self._settings.ingest.max_future_s * NS_PER_S)

    def _arrival_ns(self) -> int:
        """The time of arrival, never the same twice: two points of a series without a time are two points."""
        last_ns, now_ns = self._last_arrival_ns, clock.wall_ns()
        self._last_arrival_ns = now_ns if last_ns - now_ns > SET_BACK_NS else max(last_ns + 1, now_ns)
        return self._last_arrival_ns

    def _refuse_rows(self, batch: Batch, rows: Sequence[tuple[int, str]]) -> None:
        """Rows that their owner will never store go to the dead letter as payloads that can be replayed."""
        points = PointBatch.decode(batch.body)
        for row, reason in rows:
            series = parse_key(points.keys[points.index[row]])
            body: dict[str, object] = {
                "device_id": series.device_id,
                "metric_name": series.metric_name,
                "timestamp": int(points.times[row]),
                "timestamp_unit": "ns",
                "value": float(points.values[row]),
                "tags": dict(series.tags),
            }
            refusal = Refusal(msgspec.json.encode(body), STORAGE, reason, series.device_id)
            self._refuse(batch.origin.message(row), refusal, batch.release)

    def _refuse_batch(self, batch: Batch, reason: str) -> None:
        """A batch that its owner cannot decode goes to the dead letter as it is: we could not decode it either."""
        self._refuse(batch.origin.message(0), Refusal(batch.body, BUG, reason), batch.release)

    def _refuse(self, message: Message, refusal: Refusal, waiter: deadletter.Holdable | None = None) -> None:
        """What came before may have been kept before; and any node that has a row, or has it twice, may refuse it."""
        payload, code, reason, device = refusal
        self._refused[code] += 1
        record = Record(
            deadletter.VERSION, self._arrival_ns(), message.topic, payload, code, reason, message.flags,
            deadletter.shown_device(device),
        )  # fmt: skip
        repeat = bool(message.flags & replay.DUP) or code == STORAGE
        self._dead_letter.append(record, waiter or message, repeat)
        if logger.limited("refused " + code, 10.0):
            topic = message.topic.decode(errors="replace")
            logger.warning("refused, kept in the dead letter", topic=topic, code=code, reason=reason)

    # The end.

    def _finish(self) -> None:
        """Read no more; deliver what was taken in, as far as owners ack soon; acknowledge that; leave."""
        self.link.set_reading(False)
        self._watch()
        deadline = clock.monotonic_s() + STOP_S
        while True:
            now = clock.monotonic_s()
            self._push(now, force=True)
            if now > deadline or self._delivery.is_idle:
                break
            if self._poller.poll(BLOCKED_S):
                self._take_acks(now)
        self._spool_rest()
        self.link.acknowledge()
        self.link.close()
        self._clock_gate.note()
        self._dead_letter.close()
        self._delivery.close()
        self._bus.close()

    def _spool_rest(self) -> None:
        """Spool what is not acked; after a mark the ring store has to be looked at first, see spool.py."""
        self._delivery.spool_rest(STOP_SPOOL_BYTES)
        self._spools.flush(clock.monotonic_s())
        deadline = clock.monotonic_s() + CONFIRM_S
        while self._spools.gathered_bytes and clock.monotonic_s() < deadline:
            ring = self._view.poll()
            if ring is not None:
                self._delivery.adopt(ring)
            self._spools.flush(clock.monotonic_s())
            if self._poller.poll(BLOCKED_S):
                self._take_acks(clock.monotonic_s())

    # What others may know.

    def _beat(self) -> bytes:
        """A Beat's body; made anew about once per heartbeat."""
        now = clock.monotonic_s()
        if now - self._beat_made_s > self._settings.bus.heartbeat_s / 2:
            self._beat_made_s = now
            beat = Beat(self._started_s, self.status(now), metrics.snapshot(), self._dead_letter.told())
            self._beat_body = msgspec.msgpack.encode(beat)
        return self._beat_body

    def _withholding(self) -> list[str]:
        """Why PUBACKs are withheld, but for owners that are slow."""
        errors = {f"spool of {node}": self._spools.of(node).error for node in self._spools.nodes()}
        errors["dead letter"] = self._dead_letter.error
        return [f"{what}: {error}" for what, error in errors.items() if error]

    def status(self, now: float) -> dict[str, Any]:
        """The bridge for people, in plain msgpack types."""
        reasons = self._watchdog.reasons(now)
        heard = {
            "last_message_s_ago": self._watchdog.last_message_s_ago(now),
            "received": self._watchdog.received(now),
        }
        return {
            "id": self._settings.bridge.id,
            "ack_endpoint": self._delivery.reply_to,
            "epoch": self._view.ring.epoch,
            "ring_store": self._view.trouble,
            "healthy": not reasons,
            "unhealthy": reasons,
            "mqtt": self.link.status(now) | heard,
            "skew_s": self._skew.largest(),
            "messages": self.counts["messages"],
            "points": self.counts["points"],
            "refused": dict(self._refused),
            "dead_letter": self._dead_letter.status(),
            "replay": self._replay.status(),
            "owners": self._delivery.status(now),
            "spools": self._spools.status(),
            "oldest_epochs": self._spools.oldest_epochs(),
            "memory_bytes": self._held_bytes,
            "delivery": dict(self._delivery.counts),
            "ignored": dict(self._delivery.mismatches),
        }

    def _export(self) -> None:
        counts, delivery, link = self.counts, self._delivery, self.link
        received = {
            "messages": "MQTT messages received.",
            "points": "Points taken in.",
            "payload_bytes": "Bytes of payloads received.",
        }
        metrics.counters_from("minitrue_bridge", received, lambda: counts)
        exports.export_intake(self._intake.routes.routes)
        exports.export(delivery, self._spools)
        metrics.counter_from("minitrue_bridge_pubacks_total", "Messages acknowledged.", lambda: link.acked)
        metrics.counter_from("minitrue_bridge_connects_total", "Connections to the broker.", lambda: link.connects)
        metrics.gauge_from("minitrue_bridge_connected", "1 while connected to MQTT.", lambda: int(link.is_connected))
        metrics.gauge_from("minitrue_bridge_pending_messages", "Messages without their PUBACK.", lambda: link.pending)
        metrics.counter_from("minitrue_bridge_sessions_lost_total", "Sessions lost.", lambda: link.sessions_lost)
        metrics.counter_from("minitrue_bridge_taken_over_total", "Sessions taken over.", lambda: link.taken_over)
        metrics.counter_from(*bus.HANDSHAKES_METRIC, lambda: self._bus.handshakes_failed)
        self._watchdog.export()
        self._skew.export()
        self._export_dead_letter()
        for name, text, by_reason in (
            ("minitrue_bridge_refused_total", "Payloads, elements and rows refused, by code.", self._refused),
            ("minitrue_bridge_dead_letters_total", "Dead letters made durable, by code.", self._dead_letter.counts),
            ("minitrue_frames_ignored_total", "Frames that were not for this process, by reason.", delivery.mismatches),
        ):
            _export_by_reason(name, text, by_reason)


    def _export_dead_letter(self) -> None:
        letters, again = self._dead_letter, self._replay
        metrics.gauge_from("minitrue_bridge_dead_letter_bytes", "Bytes of all dead letters.", lambda: letters.bytes)
        metrics.gauge_from(
            "minitrue_bridge_dead_letter_devices",
            f"Dead letters made durable, by device: the {DEVICES_SHOWN} with most, and the rest.",
            lambda: {(device,): count for device, count in letters.top_devices(DEVICES_SHOWN).items()},
            labels=("device",),
        )
        metrics.counter_from(
            "minitrue_bridge_dead_letter_repeats_total", "Refused again, not kept twice.", lambda: letters.repeats
        )
        replayed = {"records": "Dead letters replayed.", "points": "Points of dead letters replayed."}
        metrics.counters_from("minitrue_bridge_replayed", replayed, lambda: again.counts)


def _broke_down(payload: bytes, error: Exception) -> Refusal:
    logger.exception("BUG: decoding failed, payload kept in the dead letter")
    return Refusal(payload, BUG, f"BUG: {error!r}")


def _export_by_reason(name: str, text: str, counts: Counter[str]) -> None:
    metrics.counter_from(name, text, lambda: {(reason,): n for reason, n in counts.items()}, labels=("reason",))
