"""tools/query, tools/client.py and the examples of docs/client.md and docs/grafana.md on a real cluster."""

import csv
import io
import json
import math
import re
import subprocess
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.queried import Queried
from tests.support import ROOT, Children, free_port
from tools.client import Client, QueryFailed, Series, Unreachable
from tools.query_app import main

S = 10**9
BEGIN = 1_699_999_200  # 2023-11-14T22:00:00Z
POINTS = 360
ROOMS = ("room1", "room2")


def level(room: int, at: int) -> float:
    return round(20 + room + math.sin(at / 50), 2)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Queried]:
    children = Children()
    made = Queried(children, tmp_path_factory.mktemp("tool"), 3, {"query.page_limit": 3}).wait_ready()
    made.push(
        ((room, "temperature", ()), (BEGIN + 10 * at) * S, level(number, at))
        for number, room in enumerate(ROOMS)
        for at in range(POINTS)
    )
    made.push([(("t", "tagged", (("room", "x"),)), BEGIN * S + 1, 1.25), (("t", "tagged", ()), BEGIN * S, -0.0)])
    yield made
    children.stop_all()


def run(cluster: Queried, capsys: Any, *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the tool."""
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--url", cluster.url])
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out, said.err


def test_one_figure_is_a_table_of_one_row(cluster, capsys):
    code, out, _ = run(cluster, capsys, "avg,max", "temperature", "--device", "room1")
    values = [level(0, at) for at in range(POINTS)]
    assert code == 0
    assert out.split() == ["avg", "max", "count", f"{sum(values) / POINTS:.7g}", f"{max(values):.7g}", str(POINTS)]


def test_buckets_are_a_table_and_a_sparkline_for_each_group(cluster, capsys):
    code, out, _ = run(
        cluster, capsys, "avg", "temperature", "--device", "room*", "--interval", "10m", "--group-by", "device_id",
        "--since", str(BEGIN), "--until", "2023-11-14T22:59:59Z",
    )  # fmt: skip
    assert code == 0
    lines = out.splitlines()
    assert lines[0].split() == ["time", "(UTC)", "device_id", "avg", "count"]
    assert lines[1].split()[:3] == ["2023-11-14", "22:00:00", "room1"]
    assert [line.split()[0] for line in lines[14:16]] == list(ROOMS)
    assert all(re.search("[▁▂▃▄▅▆▇█]{6}", line) for line in lines[14:16])


def test_csv_and_json_are_what_the_server_sends(cluster, capsysbinary):
    asked = ("avg", "temperature", "--interval", "30m", "--group-by", "device_id", "--url", cluster.url)
    for form in ("--csv", "--json"):
        with pytest.raises(SystemExit) as ended:
            main([*asked, form])
        assert not ended.value.code
        out = capsysbinary.readouterr().out.decode()
        rows = list(csv.DictReader(io.StringIO(out))) if form == "--csv" else json.loads(out)["rows"]
        assert [(row["device_id"], int(row["time"]), int(row["count"])) for row in rows] == [
            (room, BEGIN + at * 1800, POINTS // 2) for room in ROOMS for at in range(2)
        ]


def test_csv_and_json_of_a_listing_have_every_page(cluster, capsys):
    code, out, err = run(cluster, capsys, "series", "--csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert (code, err) == (0, "")
    assert [(row["device_id"], row["tags"]) for row in rows] == [
        ("t", "{}"), ("room1", "{}"), ("room2", "{}"), ("t", '{"room":"x"}')
    ]  # fmt: skip
    found = json.loads(run(cluster, capsys, "series", "--json")[1])
    assert [row["device_id"] for row in found["series"]] == ["t", "room1", "room2", "t"]
    assert (found["next_cursor"], found["coverage"]["complete"]) == (None, True)
    code, out, err = run(cluster, capsys, "series", "--csv", "--limit", "2")
    assert (code, len(out.splitlines()), err) == (0, 3, "there is more: raise --limit\n")


def test_listings_are_tables(cluster, capsys):
    code, out, _ = run(cluster, capsys, "series", "temp*")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[1:]] == list(ROOMS)
    code, out, _ = run(cluster, capsys, "last", "tagged", "--tag", "room=x")
    assert code == 0
    assert "1.25" in out
    code, out, _ = run(cluster, capsys, "samples", "temperature", "--device", "room2", "--limit", "3")
    assert code == 0
    assert [line.split()[-1] for line in out.splitlines()[1:4]] == [f"{level(1, at):.7g}" for at in range(3)]
    assert "there is more" in out
    assert run(cluster, capsys, "gaps", "temperature", "--until", str(BEGIN + POINTS * 10))[0] == 0


def test_names_are_listed_and_what_is_not_there_is_told(cluster, capsys):
    assert [line.split()[0] for line in run(cluster, capsys, "devices")[1].splitlines()[1:3]] == list(ROOMS)
    assert "temperature" in run(cluster, capsys, "metrics")[1]
    code, out, err = run(cluster, capsys, "samples", "x1", "--csv")
    assert (code, err.partition(";")[0]) == (0, "nothing matches metric_name x1, device_id *")
    _, out, err = run(cluster, capsys, "last", "temperature", "--since", "-1h")
    assert (out, err) == (
        "", "nothing to show: what matches metric_name temperature, device_id * has no points in this range\n"
    )  # fmt: skip
    assert "has no silences" in run(cluster, capsys, "gaps", "temperature", "--until", str(BEGIN + POINTS * 10))[2]
    assert "has no points" in run(cluster, capsys, "avg", "temperature", "--since", "-1h")[2]


def test_exact_tags_are_those_of_queries_and_of_deletes(cluster, capsys):
    def tags(*words: str) -> list[dict[str, str]]:
        found = json.loads(run(cluster, capsys, "series", "tagged", *words, "--json")[1])
        return [one["tags"] for one in found["series"]]

    assert tags() == [{}, {"room": "x"}]
    assert tags("--exact-tags") == [{}]
    assert tags("--exact-tags", "--tag", "room=x") == [{"room": "x"}]
    for words, what in ((), "2 points of 2 series"), (("--exact-tags",), "1 point of 1 series"):
        code, out, _ = run(cluster, capsys, "delete", "--device", "t", *words, "--dry-run")
        assert (code, out.partition(" would go")[0]) == (0, what)


def test_a_delete_of_a_mistyped_name_says_that_nothing_matched(cluster, capsys):
    code, out, err = run(cluster, capsys, "delete", "temp", "--device", "room_1", "--yes")
    assert code == 0
    assert "metric temp of room_1. Nothing stored matched: is the name right?" in out
    assert err.startswith("Nothing stored matches")


def test_errors_are_told_as_the_server_says_them_with_exit_codes(cluster, capsys):
    code, out, err = run(cluster, capsys, "mean", "temperature")
    assert (code, out) == (2, "")
    assert err.startswith('query: unknown operation "mean", want one of ')
    assert err.endswith("(field operation)\n")
    assert run(cluster, capsys, "avg", "nothing", "--device", "nobody")[0] == 1
    code, _, err = run(cluster, capsys, "avg", "t", "--json", "--csv")
    assert code == 2
    with pytest.raises(SystemExit) as ended:
        main(["avg", "t", "--url", f"http://127.0.0.1:{free_port()}"])
    assert ended.value.code == 1
    assert "Connection refused" in capsys.readouterr().err


def test_the_executable_finds_its_environment_and_takes_the_url_from_it(cluster):
    done = subprocess.run(
        [ROOT / "tools/query", "count", "temperature", "--json"],
        capture_output=True, text=True, cwd="/", timeout=60, env={"MINITRUE_URL": cluster.url, "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["result"] == {"count": 2 * POINTS}


# The client


def test_samples_are_the_points_in_arrays(cluster):
    with Client(cluster.url) as client:
        samples = client.samples("temperature")
        assert samples.series == [Series(room, "temperature", ()) for room in ROOMS]
        for number, (times, values) in enumerate(samples.by_series().values()):
            assert times.tolist() == [(BEGIN + 10 * at) * S for at in range(POINTS)]
            assert values.tolist() == [level(number, at) for at in range(POINTS)]
        tagged = client.samples("tagged")
        assert [dict(one.tags) for one in tagged.series] == [{}, {"room": "x"}]
        assert np.signbit(tagged.values[0])
        assert len(client.samples("temperature", "nobody").values) == 0
        assert len(client.samples("temperature", limit=5).values) == 5


def test_rows_come_as_columns_and_as_a_table(cluster):
    client = Client(cluster.url)
    assert client.query("avg", "temperature")["coverage"]["complete"] is True
    assert client.headers["Minitrue-Complete"] == "true"
    answer = client.query(["avg", "rate"], "temperature", interval="1h", group_by=["device_id"])
    columns = answer.columns()
    assert columns["time"].tolist() == [BEGIN * S] * 2
    assert columns["device_id"].tolist() == list(ROOMS)
    assert columns["avg"].dtype == np.float64
    assert str(answer.frame()["time"].dtype) == "datetime64[ns, UTC]"


def test_listings_go_over_all_pages(cluster):
    client = Client(cluster.url)
    assert [one["device_id"] for one in client.series(limit=1)] == ["t", "room1", "room2", "t"]
    assert [one["device_id"] for one in client.last("temperature", limit=2)] == list(ROOMS)
    assert client.gaps("temperature", end_time=BEGIN + 10 * POINTS) == []


def test_refusals_are_exceptions_and_the_connection_serves_on(cluster):
    client = Client(cluster.url)
    for _ in range(2):
        with pytest.raises(QueryFailed) as failed:
            client.query("mean", "temperature")
        assert (failed.value.status, failed.value.error, failed.value.field) == (400, "bad_request", "operation")
    assert client.query("count", "temperature", "room1")["result"] == POINTS
    with pytest.raises(Unreachable, match="Connection refused"):
        Client(f"http://127.0.0.1:{free_port()}").series()


def test_live_points_arrive_and_deletes_go(cluster):
    heard, client = Client(cluster.url).live("m", "alive"), Client(cluster.url)
    first = next(heard)
    assert first.name != "point"
    cluster.push([(("alive", "m", ()), BEGIN * S, 2.5)])
    event = next(event for event in heard if event.name == "point")
    assert [(point["device_id"], point["time"], point["value"]) for point in event.data] == [("alive", BEGIN, 2.5)]
    heard.close()
    assert client.delete("alive", "m", dry_run=True)["points"] == 1
    assert client.delete("alive")["complete"] is True
    assert len(client.samples("m", "alive").values) == 0


# The documents


def test_the_examples_of_the_client_document_run(cluster, capsys):
    text = (ROOT / "docs/client.md").read_text()
    names: dict[str, Any] = {}
    blocks = re.findall(r"<!-- runs -->\n```python\n(.+?)\n```", text, re.DOTALL)
    assert blocks
    for block in blocks:
        exec(block.replace("http://127.0.0.1:8080", cluster.url), names)
    assert capsys.readouterr().out.splitlines()[-1] == "400 bad_request operation"
    assert list(names["wide"].columns) == list(ROOMS)
    assert names["highest"] == max(level(1, at) for at in range(POINTS))


def test_the_command_lines_of_the_client_document_are_understood(cluster, capsys):
    text = (ROOT / "docs/client.md").read_text().partition("## The command line")[2]
    lines = [
        line.partition("   #")[0].partition(" >")[0] for line in text.splitlines() if line.startswith("tools/query ")
    ]
    assert len(lines) > 5
    for line in lines:
        words = [word.strip("'") for word in line.split()[1:]]
        if "live" not in words:
            code, _, err = run(cluster, capsys, *words)
            assert code == 0, (line, err)


def test_the_request_of_the_grafana_document_gives_its_columns(cluster):
    (body,) = re.findall(r"<!-- body -->\n```json\n(.+?)\n```", (ROOT / "docs/grafana.md").read_text(), re.DOTALL)
    body = body.replace("${__from:date:iso}", "2023-11-14T22:00:00.000Z")
    body = body.replace("${__to:date:iso}", "2023-11-14T23:00:00.000Z")
    status, answer = cluster.call("POST", "/query", body.encode())
    assert status == 200, answer
    assert {"time", "device_id", "avg"} <= set(answer["rows"][0])
    assert answer["rows"][0]["time"] == "2023-11-14T22:00:00Z"
    assert 100 < len([row for row in answer["rows"] if row["device_id"] == "room1"]) <= 300
