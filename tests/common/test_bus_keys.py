"""The key of the bus: who has it is in, who has none or another gets nothing and does no harm."""

import subprocess
import sys

import pytest

from common import bus, config, protocol
from common.config import Settings
from common.errors import ConfigError
from tests.support import ROOT, wait_until


@pytest.fixture(scope="module")
def key(tmp_path_factory):
    return bus.make_key(tmp_path_factory.mktemp("key") / "bus.key")


@pytest.fixture
def make_bus():
    made = []

    def make(key=None):
        made.append(bus.Bus(key))
        return made[-1]

    yield make
    for each in made:
        each.close()


def _other_key(tmp_path):
    return bus.make_key(tmp_path / "other.key")


def _wait_readable(socket):
    assert bus.Poller([socket]).poll(10.0) == [socket]


def test_all_kinds_of_sockets_speak_with_the_key(make_bus, key):
    node, others = make_bus(key), make_bus(key)
    pull, ingest = node.pull("tcp://127.0.0.1:*")
    acks = others.push_acks(ingest)
    assert acks.send([b"ack"])
    _wait_readable(pull)
    assert pull.receive() == [b"ack"]
    batches = others.push(ingest)
    wait_until(lambda: batches.send([b"batch"]))
    _wait_readable(pull)
    assert pull.receive() == [b"batch"]
    endpoint = ingest[: ingest.rindex(":")] + ":*"
    router = node.router(endpoint)
    dealer = others.dealer(router.raw.LAST_ENDPOINT.decode())
    wait_until(lambda: dealer.send([b"question"]))
    _wait_readable(router)
    route, frames = router.receive_routed()
    assert frames == [b"question"] and router.reply(route, [b"answer"])
    _wait_readable(dealer)
    assert dealer.receive() == [b"answer"]
    assert (node.handshakes_failed, others.handshakes_failed, dealer.handshakes.failing) == (0, 0, False)


@pytest.mark.parametrize("strangers", ["none", "another"])
def test_a_peer_without_the_key_gets_nothing_and_both_sides_say_so(make_bus, key, tmp_path, strangers):
    node = make_bus(key)
    pull, endpoint = node.pull("tcp://127.0.0.1:*")
    stranger = make_bus(None if strangers == "none" else _other_key(tmp_path))
    intruder = stranger.push(endpoint)
    asker = stranger.dealer(endpoint)
    wait_until(lambda: node.handshakes_failed >= 2, what="the failures to be counted")
    assert not intruder.send([b"x"]) and not asker.send([b"x"]) and not asker.connected()
    if strangers == "another":
        wait_until(lambda: asker.handshakes.failing, what="the stranger to know")
    friend = make_bus(key).push(endpoint)
    wait_until(lambda: friend.send([b"mine"]))
    _wait_readable(pull)
    assert pull.receive() == [b"mine"] and pull.receive() is None


def test_who_knows_only_the_public_half_is_not_let_in(make_bus, key, tmp_path):
    node = make_bus(key)
    _, endpoint = node.pull("tcp://127.0.0.1:*")
    stranger = make_bus()
    raw = stranger.push("tcp://127.0.0.1:9").raw  # any socket, to be given keys by hand
    other = _other_key(tmp_path)
    raw.curve_serverkey, raw.curve_publickey, raw.curve_secretkey = key.public, other.public, other.secret
    raw.connect(endpoint)
    wait_until(lambda: node.handshakes_failed, what="the failure to be counted")
    assert not bus.Socket(raw).send([b"x"])


def test_a_server_with_another_key_is_not_spoken_to(make_bus, key, tmp_path):
    router = make_bus(_other_key(tmp_path)).router("tcp://127.0.0.1:*")
    header = protocol.Header(1, "c", "n", "me", 7, 1, 0, "")
    with pytest.raises(bus.BusTimeout, match=r"no connection to .*: handshake failed: the other side has another key"):
        bus.request(router.raw.LAST_ENDPOINT.decode(), protocol.STATUS, header, {}, 0.5, key)


def test_sockets_come_and_go_while_the_gate_watches(make_bus, key):
    node, others = make_bus(key), make_bus(key)
    pull, endpoint = node.pull("tcp://127.0.0.1:*")
    for number in range(50):
        socket = others.push_acks(endpoint)
        assert socket.send([b"%d" % number])
        _wait_readable(pull)
        assert pull.receive() == [b"%d" % number]
        socket.close()
    wait_until(lambda: not others._gate._watched, what="the gate to let go of closed sockets")


def test_with_a_key_endpoints_may_leave_loopback_and_without_one_they_may_not(make_bus, key):
    assert make_bus(key).push("tcp://192.0.2.1:5710").send([b"x"]) is False  # an address that nobody has
    with pytest.raises(bus.BusError, match=r"off loopback the bus needs a key: tools/ringctl keys, bus.key_file"):
        make_bus().push("tcp://192.0.2.1:5710")
    with pytest.raises(bus.BusError, match="want tcp://HOST:PORT"):
        make_bus(key).push("ipc:///tmp/x")


def test_a_process_that_closes_nothing_ends_all_the_same(tmp_path):
    code = (
        "from pathlib import Path; from common import bus; import sys\n"
        "own = bus.Bus(bus.make_key(Path(sys.argv[1])))\n"
        "pull, endpoint = own.pull('tcp://127.0.0.1:*')\n"
        "push = own.push(endpoint)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "k")], cwd=ROOT, timeout=20, check=True)


# The file


def _settings(tmp_path, name="bus.key"):
    return Settings(bus=config.Bus(key_file=name), file=str(tmp_path / "minitrue.toml"))


def test_a_key_is_read_back_and_never_overwritten(tmp_path):
    (tmp_path / "bus.key.tmp").write_text("left over")
    (tmp_path / "bus.key.tmp").chmod(0o644)
    made = bus.make_key(tmp_path / "bus.key")
    assert (tmp_path / "bus.key").stat().st_mode & 0o777 == 0o600
    assert bus.load_key(_settings(tmp_path)) == made
    with pytest.raises(ConfigError, match="is there already"):
        bus.make_key(tmp_path / "bus.key")
    assert bus.load_key(_settings(tmp_path)) == made
    assert bus.load_key(Settings()) is None


def _halves_of_two(tmp_path):
    other = bus.make_key(tmp_path / "other")
    text = (tmp_path / "bus.key").read_text().splitlines()
    return f'{text[1]}\nsecret = "{other.secret.decode()}"'


@pytest.mark.parametrize(
    "content",
    ["", "public = 3", 'public = "x"\nsecret = "y"', "[", _halves_of_two, "public = 'ä'\nsecret = 'ö'"],
)
def test_a_file_that_holds_no_key_is_refused_without_showing_it(tmp_path, content):
    bus.make_key(tmp_path / "bus.key")
    text = content if isinstance(content, str) else content(tmp_path)
    (tmp_path / "bus.key").write_text(text)
    with pytest.raises(ConfigError, match="does not hold a key of the bus: want what tools/ringctl keys wrote") as told:
        bus.load_key(_settings(tmp_path))
    assert "secret" not in str(told.value)


def test_a_file_that_others_may_read_or_that_is_missing_is_refused(tmp_path):
    bus.make_key(tmp_path / "bus.key")
    (tmp_path / "bus.key").chmod(0o640)
    with pytest.raises(ConfigError, match="has mode 0640, want 0600: chmod 600"):
        bus.load_key(_settings(tmp_path))
    with pytest.raises(ConfigError, match=r"bus.key_file: cannot read .*gone: No such file"):
        bus.load_key(_settings(tmp_path, "gone"))
    (tmp_path / "bytes").write_bytes(b"\xff")
    (tmp_path / "bytes").chmod(0o600)
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        bus.load_key(_settings(tmp_path, "bytes"))
