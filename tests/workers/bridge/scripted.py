"""A broker that a test scripts packet by packet."""

import socket

from tests.workers.bridge.harness import variable


class ScriptedBroker:
    """The broker's end of one connection at a time, packet by packet."""

    def __init__(self, port: int, v5: str = "", grant: int = 1, properties: bytes = b"") -> None:
        """v5: "refuse" or "hang up" on CONNECTs of that version. grant: the reason code of SUBACKs. properties: of
        CONNACKs with v5.
        """
        self._v5 = v5
        self._grant = grant
        self._properties = properties
        self._server = socket.create_server(("127.0.0.1", port))
        self._server.settimeout(20)
        self._wire = self._server
        self.connect_packet = b""
        self.session: tuple[int, bool, str] = (0, True, "")

    def accept(self) -> None:
        """Take the next CONNECT and its SUBSCRIBE, refusing v5 where it is told to."""
        while True:
            self._wire, _ = self._server.accept()
            self._wire.settimeout(20)
            _, body = self._packet()
            version, flags, at = body[6], body[7], 10
            if version == 5:
                at += 1 + body[10]
            size = int.from_bytes(body[at : at + 2], "big")
            self.connect_packet = body
            self.session = (version, bool(flags & 2), body[at + 2 : at + 2 + size].decode())
            if version != 5 or not self._v5:
                break
            if self._v5 == "refuse":
                self._wire.sendall(b"\x20\x02\x00\x01")
            self._wire.close()
        self._version = version
        rest = bytes([len(self._properties)]) + self._properties if version == 5 else b""
        self._wire.sendall(bytes([0x20, 2 + len(rest), 0, 0]) + rest)
        first, body = self._packet()
        assert first == 0x82
        ack = body[:2] + (b"\x00" if version == 5 else b"") + bytes([self._grant])
        self._wire.sendall(bytes([0x90, len(ack)]) + ack)

    def send(self, messages: list[tuple[str, bytes]], first_id: int) -> None:
        """PUBLISH at QoS 1, packet ids counting from first_id."""
        for packet_id, (topic, payload) in enumerate(messages, first_id):
            body = len(topic).to_bytes(2, "big") + topic.encode() + packet_id.to_bytes(2, "big")
            body += (b"\x00" if self._version == 5 else b"") + payload
            self._wire.sendall(b"\x32" + variable(len(body)) + body)

    def acks(self, count: int) -> list[int]:
        """The packet ids of the next PUBACKs."""
        found = []
        while len(found) < count:
            first, body = self._packet()
            if first == 0x40:
                found.append(int.from_bytes(body[:2], "big"))
        return found

    def no_more_acks(self) -> bool:
        """Whether nothing but pings comes for a while that would suffice several times over."""
        self._wire.settimeout(0.5)
        try:
            while True:
                first, _ = self._packet()
                if first != 0xC0:
                    return False
        except TimeoutError:
            return True
        finally:
            self._wire.settimeout(20)

    def next_packet(self) -> int:
        """The first byte of the next packet."""
        return self._packet()[0]

    def hang_up(self, reason: int | None = None) -> None:
        """Close the connection, with v5 after a DISCONNECT that gives a reason."""
        if reason is not None:
            self._wire.sendall(bytes([0xE0, 1, reason]))
        self._wire.close()

    def close(self) -> None:
        """Close everything."""
        self._wire.close()
        self._server.close()

    def _packet(self) -> tuple[int, bytes]:
        first, length = self._exactly(1)[0], self._exactly(1)[0]
        assert length < 128
        return first, self._exactly(length)

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self._wire.recv(size - len(data))
            if not piece:
                raise ConnectionError("the bridge hung up")
            data += piece
        return data
