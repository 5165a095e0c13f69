"""Broker workers as processes, and subscribers: one in this process, one to be killed."""

import os
import signal
import socket
import sys
import threading
from pathlib import Path
from subprocess import Popen
from typing import Any

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from tests.support import Children, free_port, require_part, wait_until

KINDS = ("embedded", "mosquitto")

# Appends each payload to a file as a line, then acknowledges it: what it has acknowledged is in the file.
_SUBSCRIBER = """
import sys
import paho.mqtt.client as paho
port, client_id, path = int(sys.argv[1]), sys.argv[2], sys.argv[3]
out = open(path, "ab", buffering=0)
def received(client, userdata, message):
    out.write(message.payload + b"\\n")
    client.ack(message.mid, message.qos)
client = paho.Client(paho.CallbackAPIVersion.VERSION2, client_id, clean_session=False, manual_ack=True)
client.on_message = received
client.on_connect = lambda client, *rest: client.subscribe("#", 1)
client.on_subscribe = lambda *rest: print("subscribed", flush=True)
client.connect("127.0.0.1", port)
client.loop_forever()
"""


class BrokerProcess:
    """A broker worker of one kind, with its data directory and port; may be stopped and started again.

    With start=False it is only described; `run` starts it then.
    """

    process: Popen[Any]

    def __init__(self, children: Children, kind: str, data: Path, start: bool = True, **environment: str) -> None:
        if kind == "mosquitto":
            require_part("mosquitto")
        self.kind = kind
        self.data = data
        self.port = free_port()
        self.url = f"mqtt://127.0.0.1:{self.port}"
        self._children = children
        self._environment = environment
        if start:
            self.start()

    def start(self) -> None:
        """Start it, and wait until it listens."""
        self.process = self.run()
        wait_until(lambda: self.listens() or self.process.poll() is not None, what="the broker to listen")
        assert self.process.poll() is None, f"the broker ended with {self.process.returncode}"

    def run(self, **options: Any) -> Popen[Any]:
        """Start it, and wait for nothing."""
        environment = os.environ | {
            "MINITRUE__MQTT__BROKER": self.kind,
            "MINITRUE__MQTT__URL": self.url,
            "MINITRUE__PATHS__DATA": str(self.data),
            **self._environment,
        }
        return self._children.start(sys.executable, "-m", "workers.broker", env=environment, **options)

    def stop(self) -> int:
        """Ask it to end; its exit code."""
        self.process.terminate()
        return self.process.wait(20)

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.wait(20)

    @property
    def is_up(self) -> bool:
        """Whether its process runs, frozen or not."""
        return self.process.poll() is None

    def freeze(self) -> None:
        """Stop the process where it stands."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self.process.send_signal(signal.SIGCONT)

    def listens(self) -> bool:
        """Whether the port takes connections."""
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


class Subscriber:
    """Takes messages in a thread. With hold it acknowledges none until `release`.

    got: (topic, payload) of each, in order of arrival; granted: return codes of the latest subscription.
    """

    def __init__(
        self,
        broker: BrokerProcess,
        client_id: str = "bridge",
        topic: str = "#",
        *,
        clean: bool = False,
        hold: bool = False,
        version: int = paho.MQTTv311,
        user: tuple[str, str] | None = None,
    ) -> None:
        self.got: list[tuple[str, bytes]] = []
        self.granted: list[int] = []
        self.refused = ""
        self._held: list[tuple[int, int]] | None = [] if hold else None
        self._lock = threading.Lock()  # guards _held
        self._subscribed = threading.Event()
        self._version = version
        self._make = lambda: self._made(client_id, topic, clean, user)
        self._client = self._make()
        self._connect(broker.port)

    def __len__(self) -> int:
        return len(self.got)

    def payloads(self) -> list[bytes]:
        """Payloads in order of arrival."""
        return [payload for _, payload in self.got]

    def release(self) -> None:
        """Acknowledge what was held, and everything from now on."""
        with self._lock:
            held, self._held = self._held or [], None
            for mid, qos in held:
                self._client.ack(mid, qos)

    def drop(self) -> None:
        """Cut the connection without a DISCONNECT, as a killed process does."""
        self._client.loop_stop()
        connection = self._client.socket()
        if connection is not None:  # else the broker was faster
            connection.close()

    def reconnect(self, port: int) -> None:
        """Drop the connection and come again under the same client id; `got` goes on."""
        self.drop()
        self._subscribed.clear()
        self._client = self._make()
        self._connect(port)

    def close(self) -> None:
        """Disconnect as one should."""
        self._client.disconnect()
        self._client.loop_stop()

    def _made(self, client_id: str, topic: str, clean: bool, user: tuple[str, str] | None) -> paho.Client:
        session = {} if self._version == paho.MQTTv5 else {"clean_session": clean}
        made = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id,
            protocol=self._version,
            manual_ack=True,
            reconnect_on_failure=False,  # a test says when
            **session,
        )
        if user:
            made.username_pw_set(*user)
        made.on_connect = lambda client, data, flags, reason, rest: self._connected(reason, topic)
        made.on_subscribe = lambda client, data, mid, codes, rest: self._answered(codes)
        made.on_message = self._received
        return made

    def _connect(self, port: int) -> None:
        if self._version == paho.MQTTv5:
            properties = Properties(PacketTypes.CONNECT)
            properties.ReceiveMaximum = 65535
            properties.SessionExpiryInterval = 3600
            self._client.connect("127.0.0.1", port, clean_start=False, properties=properties)
        else:
            self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        wait_until(lambda: self._subscribed.is_set() or self.refused, what="a subscription")

    def _connected(self, reason: Any, topic: str) -> None:
        if reason.is_failure:
            self.refused = str(reason)
        else:
            self._client.subscribe(topic, 1)

    def _answered(self, codes: list[Any]) -> None:
        self.granted = [code.value for code in codes]
        self._subscribed.set()

    def _received(self, client: paho.Client, data: object, message: paho.MQTTMessage) -> None:
        self.got.append((message.topic, message.payload))
        with self._lock:
            if self._held is not None:
                self._held.append((message.mid, message.qos))
                return
        client.ack(message.mid, message.qos)


class KillableSubscriber:
    """A subscriber with a persistent session in a process of its own, again and again."""

    def __init__(self, children: Children, port: int, path: Path) -> None:
        self._children = children
        self._port = port
        self._path = path
        path.touch()
        self._process = self._start()

    def kill(self) -> None:
        """kill -9, and start the next one."""
        self._process.kill()
        self._process.wait()
        self._process = self._start()

    def payloads(self) -> list[bytes]:
        """What was received so far."""
        return self._path.read_bytes().split(b"\n")[:-1]

    def _start(self) -> Popen[Any]:
        command = [sys.executable, "-c", _SUBSCRIBER, str(self._port), "bridge", str(self._path)]
        process = self._children.start(*command, stdout=-1)
        assert process.stdout is not None
        if not process.stdout.readline():
            pytest.fail(f"the subscriber ended with {process.wait()}")
        return process


def publish(port: int, payloads: list[bytes], topic: str = "t", qos: int = 1, **options: Any) -> None:
    """Publish over one connection, return when all is acknowledged, and hang up at once."""
    client = paho.Client(CallbackAPIVersion.VERSION2, clean_session=True)
    client.max_inflight_messages_set(200)
    if "user" in options:
        client.username_pw_set(*options["user"])
    client.connect("127.0.0.1", port)
    client.loop_start()
    sent = [client.publish(topic, payload, qos, retain=bool(options.get("retain"))) for payload in payloads]
    for each in sent:
        each.wait_for_publish(60)
        assert each.is_published(), "no PUBACK within a minute"
    client.disconnect()
    client.loop_stop()
