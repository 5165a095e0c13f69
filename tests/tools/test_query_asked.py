"""What tools/query says beside its answers, and how it deletes: against a server that answers from a list."""

import csv
import http.server
import io
import json
import threading
from urllib.parse import parse_qsl, urlsplit

import pytest

from tools import query_app, query_asked

COMPLETE = {"complete": True, "missing": []}
LACKING = {"complete": False, "missing": [{"node": "ing2", "partitions": 3, "reason": "not connected (tcp://x)"}]}
SERIES = {"device_id": "a", "metric_name": "m", "tags": {}}
ADOPTED = {"number": 5, "device_id": "a", "metric_name": None, "waiting": [], "unreachable": []}
BRIDGE, NODE = {"worker": "bridge1", "reason": "is at epoch 4"}, {"worker": "ing2", "reason": "not connected"}
MATCHED = {"series": 1, "points": 61, "complete": True}
WOULD = {
    "dry_run": True, "series": 1, "points": 61, "first_time": 1_700_000_000, "last_time": 1_700_003_600,
    "of_series": [{**SERIES, "points": 61}],
}  # fmt: skip
PREVIEW = (
    "61 points of 1 series would go, from 2023-11-14 22:13:20 to 2023-11-14 23:13:20 UTC:\n  a m: 61 points\n"
)


class Server:
    """answers: in their order, each a status, headers and a body (bytes, or what becomes JSON). asked: what came."""

    def __init__(self) -> None:
        self.answers: list = []
        self.asked: list = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                where = urlsplit(self.path)
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                outer.asked.append((where.path, json.loads(body) if body else dict(parse_qsl(where.query, True))))
                status, headers, data = outer.answers.pop(0)
                data = data if isinstance(data, bytes) else json.dumps(data).encode()
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(data))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_DELETE = answer

            def log_message(self, *_: object) -> None: ...

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server():
    made = Server()
    yield made
    made.close()


@pytest.fixture
def run(server, capfd):
    def run(*arguments, answers=()):
        server.answers[:] = [(answer if isinstance(answer, tuple) else (200, {}, answer)) for answer in answers]
        with pytest.raises(SystemExit) as ended:
            query_app.main([*arguments, "--url", server.url])
        said = capfd.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return run


# Incomplete and empty answers


def test_an_answer_that_lacks_nodes_says_so_beside_it_and_ends_with_3(run):
    answer = {"operation": ["avg"], "result": {"avg": 1.5}, "count": 2, "coverage": LACKING}
    for form in ((), ("--json",)):
        code, out, err = run("avg", "m", "--partial", *form, answers=[answer])
        assert (code, err) == (3, "INCOMPLETE, ing2: not connected (tcp://x)\n")
        assert "1.5" in out
    lacks = {"Minitrue-Complete": "false", "Minitrue-Missing": "ing2: away"}
    code, out, err = run("series", "--partial", "--csv", answers=[(200, lacks, b"a\r\n1\r\n")])
    assert (code, out, err) == (3, "a\r\n1\r\n", "INCOMPLETE, ing2: away\n")


def test_what_matches_nothing_is_told_apart_from_a_range_without_points(run, server):
    empty = {"rows": [], "next_cursor": None, "coverage": COMPLETE}
    none, some = ({"series": series, "coverage": COMPLETE} for series in ([], [SERIES]))
    code, out, err = run("last", "x1", "--tag", "room=a", "--since", "-1h", answers=[empty, none])
    assert (code, out) == (0, "")
    assert err == (
        'nothing matches metric_name x1, device_id *, tags {"room": ["a"]}; '
        "`query metrics` and `query devices` list what there is\n"
    )
    assert server.asked[1] == (
        "/api/v1/series",
        {
            "metric_name": "x1", "device_id": "*", "tags": {"room": ["a"]}, "more_tags": True, "details": False,
            "limit": 1, "allow_partial": True,
        },
    )  # fmt: skip
    for command, what in (("gaps", "silences"), ("last", "points")):
        _, _, err = run(command, "m", answers=[empty, some])
        assert err == f"nothing to show: what matches metric_name m, device_id * has no {what} in this range\n"
    assert "nothing matches" in run("series", "x1", "--csv", answers=[(200, {}, b"device_id\r\n"), none])[2]


# Pages


def test_csv_and_json_of_samples_have_every_point_unless_there_is_a_limit(run, server):
    pages = [
        (200, {"Minitrue-Next-Cursor": "c"}, b"time,value\r\n1,1.0\r\n"),
        (200, {}, b"time,value\r\n2,2.0\r\n"),
    ]
    code, out, err = run("samples", "m", "--csv", answers=pages)
    assert (code, err) == (0, "")
    assert [row["time"] for row in csv.DictReader(io.StringIO(out))] == ["1", "2"]
    assert [asked["limit"] for _, asked in server.asked] == [query_app.SAMPLES_PAGE] * 2
    assert run("samples", "m", "--csv", "--limit", "1", answers=pages)[2] == "there is more: raise --limit\n"
    pages = [
        {"series": [{**SERIES, "times": [at], "values": [1.0]}], "next_cursor": cursor, "coverage": COMPLETE}
        for at, cursor in ((1, "c"), (2, None))
    ]
    found = json.loads(run("samples", "m", "--json", answers=pages)[1])
    assert [one["times"] for one in found["series"]] == [[1], [2]]
    assert "there is more: --limit for more of it" in run("samples", "m", answers=pages)[1]


# Options


def test_tags_allow_others_unless_they_are_to_be_exact(run, server):
    answer = {"series": [SERIES], "coverage": COMPLETE}
    asked = []
    for words in (("--tag", "a=1"), ("--tag", "a=1", "--exact-tags"), ("--exact-tags",), ()):
        run("series", *words, answers=[answer])
        fields = server.asked.pop()[1]
        asked.append((fields.get("tags"), fields.get("more_tags")))
    assert asked == [({"a": ["1"]}, True), ({"a": ["1"]}, None), ({}, None), (None, None)]


@pytest.mark.parametrize(
    "words",
    [
        ("live", "--csv"), ("live", "--watch", "1"), ("live", "--since", "-1h"), ("live", "--partial"),
        ("delete", "--device", "a", "--watch", "1"), ("delete", "--device", "a", "--partial"), ("delete", "m"),
        ("delete", "--device", "a", "--device", "b"),
    ],
)  # fmt: skip
def test_what_a_command_cannot_do_is_no_option_of_it(run, server, words):
    assert run(*words)[0] == 2
    assert server.asked == []


def test_a_missing_token_is_told_with_its_option(run):
    said = {"error": "unauthorized", "message": "a token is wanted"}
    code, _, err = run("series", answers=[(401, {}, said)])
    assert (code, err) == (1, "query: a token is wanted; the token is that of --token, or MINITRUE_TOKEN\n")


# Deletes


def test_a_delete_is_told_in_words(run, server):
    assert run("delete", "--device", "a", "--dry-run", answers=[WOULD]) == (0, PREVIEW, "")
    code, out, err = run("delete", "--device", "a", "--yes", answers=[WOULD, {**ADOPTED, "matched": MATCHED}])
    assert (code, err) == (0, PREVIEW)
    assert out == "Delete 5 is in force: every metric of a. It took 61 points of 1 series.\n"
    assert [asked["dry_run"] for _, asked in server.asked] == ["true", "true", "false"]
    nothing = {"series": 0, "points": 0, "complete": True}
    late = {**ADOPTED, "metric_name": "m", "matched": nothing, "waiting": [BRIDGE], "unreachable": [NODE]}
    _, out, err = run("delete", "m", "--device", "a", "--yes", answers=[{**WOULD, **nothing}, late])
    assert err.startswith("Nothing stored matches")
    assert out.splitlines() == [
        "Delete 5 is in force: metric m of a. Nothing stored matched: is the name right? "
        "It takes points that are on their way.",
        "Not yet adopted by bridge1 (is at epoch 4): points that come by it may count as older.",
        "Not reached: ing2 (not connected); it applies there once they are back.",
    ]
    found = {**ADOPTED, "matched": MATCHED}
    assert json.loads(run("delete", "--device", "a", "--yes", "--json", answers=[WOULD, found])[1]) == found


def test_a_delete_is_done_though_a_node_is_away_and_nobody_can_count(run, server):
    away = (503, {}, {"error": "incomplete", "message": "341 of 1024 partitions did not answer"})
    code, out, err = run("delete", "--device", "a", "--yes", answers=[away, {**ADOPTED, "matched": None}])
    assert (code, err) == (0, "What would go cannot be told now: 341 of 1024 partitions did not answer\n")
    assert out == "Delete 5 is in force: every metric of a. How much it took could not be counted.\n"
    assert run("delete", "--device", "a", "--dry-run", answers=[away])[0] == 1
    assert run("delete", "--device", "a", "--yes", answers=[(403, {}, {"error": "forbidden", "message": "no"})])[0] == 1


# Watching


def test_watching_goes_on_after_what_may_pass_and_ends_with_what_may_not(run, monkeypatch):
    monkeypatch.setattr(query_asked.time, "sleep", lambda _: None)
    answer = {"operation": ["avg"], "result": {"avg": 1.5}, "count": 2, "coverage": COMPLETE}
    away = (503, {}, {"error": "incomplete", "message": "ing2 is away"})
    refused = (400, {}, {"error": "bad_request", "message": "no"})
    code, out, err = run("avg", "m", "--watch", "1", answers=[away, answer, away, answer, refused])
    lines = err.splitlines()
    assert [line.partition(" UTC, ")[2] for line in lines[:2]] == ["no answer: ing2 is away; asking again in 1 s"] * 2
    assert (code, lines[2:]) == (2, ["query: no"])
    assert out.count("1.5") == 2
    assert sum(line.endswith(" UTC") for line in out.splitlines()) == 5
