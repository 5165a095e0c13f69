"""What tools/query shows, and how tools/client.py writes requests and reads answers: without a server."""

import contextlib
import re
import socket
import ssl
import threading
from zoneinfo import ZoneInfo

import msgpack
import numpy as np
import pytest
from rich.console import Console

from tests.support import certificate
from tools import client, query_app, query_show
from tools.client import Answer, Client, Event, QueryFailed, Samples, Series, Unreachable
from workers.query import formats


def _text(table) -> str:
    console = Console(width=160, highlight=False)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


@pytest.mark.parametrize(
    ("values", "want"),
    [
        ([], ""),
        ([None, None], ""),
        ([1.0, 1.0], "▅▅"),
        ([0, 1, 2, 3, 4, 5, 6, 7], "▁▂▃▄▅▆▇█"),
        ([0.0, None, 7.0], "▁ █"),
        ([-1e308, 1e308], "▁█"),
    ],
)
def test_a_sparkline_has_a_tick_for_each_value_and_a_blank_for_each_gap(values, want):
    assert query_show.spark(values) == want


def test_a_long_sparkline_is_as_wide_as_it_may_be():
    line = query_show.spark([float(value) for value in range(600)])
    assert len(line) == query_show.SPARK_COLUMNS
    assert list(line) == sorted(line)
    assert set(line) == set(query_show.TICKS)


def test_times_lengths_tags_and_figures_are_written_for_people():
    row = {
        "time": 1_700_000_000.25, "device_id": "[a]", "tags": {"room": "x"}, "avg": 20.123456789, "count": 3,
        "usual_s": 90.0, "last": None,
    }  # fmt: skip
    shown = _text(query_show.table_of([row])).splitlines()
    assert shown[0].split() == ["time", "(UTC)", "device_id", "tags", "avg", "count", "usual_s", "last"]
    assert shown[1].split() == ["2023-11-14", "22:13:20.25", "[a]", "room=x", "20.12346", "3", "1.5", "min", "-"]


def test_times_of_another_zone_name_it_and_their_distance_from_utc():
    shown = _text(query_show.table_of([{"time": 1_711_846_800.5, "avg": 1}], ZoneInfo("Europe/Berlin"))).split()
    assert shown == ["time", "(Europe/Berlin)", "avg", "2024-03-31", "03:00:00.5+02:00", "1"]


def test_a_long_table_says_that_it_is_cut():
    rows = [{"count": 1}] * 201
    assert len(_text(query_show.table_of(rows)).splitlines()) == 201
    assert query_show.cut_text(rows) == "200 of 201 rows; --csv or --json for all"
    assert query_show.cut_text(rows[1:]) is None


def test_groups_of_buckets_get_sparklines_and_lone_rows_do_not():
    rows = [{"time": at, "device_id": name, "avg": at, "count": 1} for name in "ab" for at in (3.0, 1.0, 2.0)]
    table = query_show.sparks_of(rows, ["avg"])
    assert [line.split() for line in _text(table).splitlines()[1:]] == [
        [name, "avg", "1", "▁▅█", "3"] for name in "ab"
    ]
    assert query_show.sparks_of(rows[:1], ["avg"]) is None


def test_fields_become_parameters_of_a_url():
    fields = {
        "device_id": ["a b", "c"], "metric_name": {"exact": "m*"}, "tags": {"room": ["x", "y"]}, "more_tags": True,
        "limit": 3, "cursor": None,
    }  # fmt: skip
    assert client.parameters(fields) == (
        "device_id=a+b&device_id=c&metric_name.exact=m%2A&tags.room=x&tags.room=y&more_tags=true&limit=3"
    )
    assert client.parameters({"tags": {}}) == "tags="
    assert client.parameters({"device_id": [{"exact": "a*"}, "b"]}) == "device_id.exact=a%2A&device_id=b"


@pytest.mark.parametrize(
    "fields", [{"tags": {"room": {"exact": "a*"}}}, {"start_time": {"exact": "1"}}, {"device_id": [["a"]]}]
)
def test_what_a_url_cannot_say_is_no_other_question(fields):
    with pytest.raises(ValueError, match="cannot stand in a URL"):
        client.parameters(fields)


def test_server_sent_events_are_read_whole_and_heartbeats_left_out():
    lines = [": alive", "", "event: points", 'data: {"a":', "data: 1}", "", 'data: {"b": 2}', "", "data: 3"]
    assert list(client._events(iter(lines))) == [Event("points", {"a": 1}), Event("message", {"b": 2})]


def test_rows_become_columns_and_a_table():
    answer = Answer(rows=[{"time": 10**18, "device_id": "a", "avg": 1}, {"time": 10**18 + 1, "avg": None}])
    columns = answer.columns()
    assert columns["time"].tolist() == [10**18, 10**18 + 1]
    assert columns["device_id"].tolist() == ["a", None]
    assert str(columns["avg"].tolist()) == "[1.0, nan]"
    frame = answer.frame()
    assert str(frame["time"][0]) == "2001-09-09 01:46:40+00:00"
    assert list(frame) == ["time", "device_id", "avg"]


def test_an_answer_without_buckets_is_one_row():
    columns = Answer(operation="avg", result=20.5, count=4).columns()
    assert {name: column.tolist() for name, column in columns.items()} == {"avg": [20.5], "count": [4.0]}
    columns = Answer(operation=["min", "max"], result={"min": 1, "max": None}, count=4).columns()
    assert str([column.tolist() for column in columns.values()]) == "[[1.0], [nan], [4.0]]"
    with pytest.raises(ValueError, match="this answer has no rows, it has series, coverage"):
        Answer(series=[], coverage={}).columns()


def test_samples_are_told_apart_by_series():
    one, other = Series("a", "m", ()), Series("b", "m", (("room", "x"),))
    samples = Samples(
        [one, other], np.array([0, 1, 0], np.uint32), np.array([1, 2, 3], np.int64), np.array([1.0, 2.0, -0.0])
    )
    found = {series: (times.tolist(), values.tolist()) for series, (times, values) in samples.by_series().items()}
    assert found == {one: ([1, 3], [1.0, -0.0]), other: ([2], [2.0])}
    frame = samples.frame()
    assert list(frame) == ["time", "device_id", "metric_name", "tags.room", "value"]
    assert frame["tags.room"].tolist()[1] == "x"


@pytest.mark.parametrize("url", ["ftp://x", "http://", "//x"])
def test_a_url_that_is_none_is_refused(url):
    with pytest.raises(ValueError, match="want http://HOST:PORT"):
        Client(url)


def test_a_file_of_certificates_that_is_none_is_refused_with_its_name(tmp_path):
    (tmp_path / "no.pem").write_text("no")
    for name in ("away.pem", "no.pem"):
        with pytest.raises(ValueError, match=f"ca_file .*{name}.*want certificates in PEM"):
            Client("https://127.0.0.1", ca_file=tmp_path / name)


def _request(connection: socket.socket) -> bytes:
    """The next whole request; empty when the client is gone.

    Head and body come in two pieces. A server that closes with one of them unread resets the connection, and what the
    client then sees of the answer is chance.
    """
    request = b""
    while b"\r\n\r\n" not in request:
        if not (data := connection.recv(65536)):
            return b""
        request += data
        if request[0] == 0x16:
            return request  # a TLS hello
    head, _, body = request.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    while length and len(body) < int(length[1]):
        if not (data := connection.recv(65536)):
            return b""
        body += data
    return head + b"\r\n\r\n" + body


@pytest.fixture
def tls(tmp_path):
    """URL without scheme of a server that answers {} over TLS, and the file of its self-signed certificate."""
    cert, key = certificate(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)
    server = socket.create_server(("127.0.0.1", 0))

    def run() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with contextlib.suppress(OSError), context.wrap_socket(connection, server_side=True) as secured:
                _request(secured)
                secured.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    threading.Thread(target=run, daemon=True).start()
    yield f"127.0.0.1:{server.getsockname()[1]}", cert
    server.shutdown(socket.SHUT_RDWR)
    server.close()


def test_a_self_signed_certificate_is_trusted_when_it_is_named(tls):
    place, cert = tls
    assert Client(f"https://{place}", ca_file=cert).call("GET", "/", {}) == {}
    with pytest.raises(Unreachable, match=r"not trusted .*: it, or its authority, can be named as ca_file"):
        Client(f"https://{place}").call("GET", "/", {})


def test_the_command_line_names_its_own_option_for_a_certificate(tls, capfd):
    with pytest.raises(SystemExit) as ended:
        query_app.main(["series", "--url", f"https://{tls[0]}"])
    assert (ended.value.code, capfd.readouterr().err.partition("can be named as ")[2]) == (1, "--ca-file\n")


def test_http_to_a_port_of_tls_says_so(serve):
    url = serve(b"\x15\x03\x03\x00\x02\x02\x46", b"")  # an alert, as servers of TLS answer plain HTTP
    with pytest.raises(Unreachable, match=f"^{url}: it speaks TLS: try {url.replace('http', 'https')}$"):
        Client(url).call("GET", "/", {})


def test_https_to_a_port_without_tls_says_so(serve):
    url = serve(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0", b"").replace("http", "https")
    with pytest.raises(Unreachable, match=r"does it speak TLS\? If not, try http://"):
        Client(url).call("GET", "/", {})


def test_what_is_no_http_is_shown(serve):
    with pytest.raises(Unreachable, match="the answer is not HTTP, it begins with 'SSH-2"):
        Client(serve(b"SSH-2.0", b"")).call("GET", "/", {})


# Answers that break off


@pytest.fixture
def serve():
    """Answers every connection with the bytes given and closes it; gives the URL."""
    listening = []

    def start(head: bytes, body: bytes) -> str:
        server = socket.create_server(("127.0.0.1", 0))
        listening.append(server)

        def run() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    _request(connection)
                    connection.sendall(head + b"\r\n\r\n" + body)

        threading.Thread(target=run, daemon=True).start()
        return f"http://127.0.0.1:{server.getsockname()[1]}"

    yield start
    for server in listening:
        server.shutdown(socket.SHUT_RDWR)
        server.close()


def test_a_delete_is_never_sent_twice():
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def run() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    while request := _request(connection):
                        asked.append(request.split()[0])
                        if asked[-1] == b"DELETE":
                            break  # it may be in force by now
                        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

        threading.Thread(target=run, daemon=True).start()
        with Client(f"http://127.0.0.1:{server.getsockname()[1]}") as asking:
            asking.query("avg", "m")
            with pytest.raises(Unreachable):
                asking.delete("a")
        server.shutdown(socket.SHUT_RDWR)
    assert asked == [b"POST", b"DELETE"]


def whole(body: bytes) -> tuple[bytes, bytes]:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d" % len(body), body


@pytest.mark.parametrize("body", [b"", b"a,b\r\n1,2\r\n"])
def test_an_answer_that_is_shorter_than_it_said_is_none(serve, body):
    url = serve(b"HTTP/1.1 200 OK\r\nContent-Length: 1000", body)
    with pytest.raises(Unreachable, match=f"/query: the answer broke off: {1000 - len(body)} bytes of it are missing"):
        list(Client(url).chunks("POST", "/query", {}))


def test_json_that_the_server_left_open_is_told_with_its_reason(serve):
    broken = b'{"rows":[{"avg":1.5}' + formats._BROKEN["json"]("incomplete", "ing2 is away")
    with pytest.raises(Unreachable, match="/query: the answer broke off: ing2 is away"):
        Client(serve(*whole(broken))).query("avg", "m")
    with pytest.raises(Unreachable, match="the answer broke off: it ends in b'<html>'"):
        Client(serve(*whole(b"<html>"))).query("avg", "m")


def test_samples_that_the_server_broke_off_are_told(serve):
    part = msgpack.packb({"series": [], "next_cursor": None, "coverage": None})
    for end in (formats._BROKEN["msgpack"]("incomplete", "ing2 is away"), b""):
        with pytest.raises(Unreachable, match="the answer broke off"):
            Client(serve(*whole(part + end))).samples()


def test_an_error_that_is_no_object_is_one_all_the_same(serve):
    with pytest.raises(QueryFailed, match="HTTP status 502: b'\\[\"no\"\\]'"):
        Client(serve(b"HTTP/1.1 502 No\r\nContent-Length: 6", b'["no"]')).query("avg", "m")


def test_csv_that_the_server_broke_off_is_printed_and_ends_with_exit_code_1(serve, capfdbinary):
    rows = b"avg,count\r\n1.5,3\r\n"
    url = serve(*whole(rows + formats._BROKEN["csv"]("incomplete", "ing2 is away")))
    with pytest.raises(SystemExit) as ended:
        query_app.main(["avg", "m", "--csv", "--url", url])
    out, err = capfdbinary.readouterr()
    assert ended.value.code == 1
    assert out.startswith(rows)
    assert b"query: the answer broke off, its last line says why: error,incomplete,ing2 is away" in err


def test_a_live_stream_that_the_server_ends_with_an_error_ends_with_exit_code_1(serve, capfdbinary):
    url = serve(*whole(b'event: error\ndata: {"error":"slow_reader","message":"read faster"}\n\n'))
    with pytest.raises(SystemExit) as ended:
        query_app.main(["live", "m", "--url", url])
    out, err = capfdbinary.readouterr()
    assert (ended.value.code, err) == (1, b"query: read faster\n")
    assert b'"event": "error"' in out
