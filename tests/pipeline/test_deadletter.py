"""A dead letter's life through the whole of it: refused, listed, the cause mended, replayed, in answers, purged."""

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

from tests.pipeline import client
from tests.pipeline.test_bad_input import NOW, Publisher
from tests.support import ROOT, Children, wait_until
from tools.sandbox_app import Sandbox

AHEAD_S = 7200  # beyond ingest.max_future_s


def tool(cluster: Sandbox, *arguments: str) -> tuple[int, Any]:
    done = subprocess.run(
        [ROOT / "tools" / "deadletter", *arguments, "--json"],
        env=os.environ | cluster.environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def records(cluster: Sandbox) -> int:
    return int(tool(cluster, "list")[1]["records"])


def told_by_all(cluster: Sandbox) -> dict[str, dict[str, int]]:
    """What the query worker tells: records by bridge and code."""
    with urllib.request.urlopen(f"{cluster.http}/api/v1/dead-letters", timeout=10) as response:
        answer = json.load(response)
    assert answer["missing"] == []
    found: dict[str, dict[str, int]] = {each["bridge"]: {} for each in answer["bridges"]}
    for row in answer["rows"]:
        found[row["bridge"]][row["reason"]] = row["count"]
    return found


def told(cluster: Sandbox) -> dict[str, int]:
    """What the query worker tells of the only bridge: records by code."""
    found = told_by_all(cluster)
    assert found.keys() == {"bridge1"}
    return found["bridge1"]


def set_setting(file: Path, name: str, old: str, new: str) -> None:
    text = file.read_text()
    assert text.count(f"{name} = {old}\n") == 1, text
    file.write_text(text.replace(f"{name} = {old}\n", f"{name} = {new}\n"))


def test_what_was_refused_is_in_answers_after_the_cause_is_mended_and_it_is_replayed(children: Children) -> None:
    with Sandbox(nodes=2, broker="auto") as cluster:
        publisher = Publisher(cluster.mqtt)
        for number in range(20):
            point = {"device_id": f"d{number}", "metric_name": "m", "timestamp": NOW + AHEAD_S, "value": number / 7}
            publisher.send(json.dumps(point).encode())
        publisher.send(b"never a point")
        publisher.close()
        wait_until(lambda: records(cluster) == 21, what="refused")
        code, listed = tool(cluster, "list")
        assert (code, listed["codes"]) == (0, {"future": 20, "not-json": 1})
        wait_until(lambda: told(cluster) == listed["codes"], what="told")
        assert listed["devices"] == {**{f"d{n}": 1 for n in range(20)}, "(unknown)": 1}

        set_setting(cluster.config, "max_future_s", "3600.0", "10000.0")
        code, dry = tool(cluster, "replay", "--dry-run")
        assert (code, dry["points"], dry["refused"]) == (1, 20, {"not-json": 1})
        code, early = tool(cluster, "replay")
        assert (code, early["points"]) == (1, 0), "the bridge that runs has the former configuration"
        assert early["refused"] == {"future": 20, "not-json": 1}
        cluster.restart("bridge")
        cluster.wait_ready()
        wait_until(lambda: told(cluster) == listed["codes"], what="told by the bridge that read them")
        code, done = tool(cluster, "replay", "--code", "future")
        assert (code, done["points"], done["done"]) == (0, 20, True)
        client.wait_for_counts(cluster.http, {(f"d{n}", "m"): 1 for n in range(20)}, timeout_s=20)
        status, answer = client.ask(
            cluster.http, device_id="d13", metric_name="m", operation="last", start_time=0, end_time=0
        )
        assert (status, answer["result"]) == (200, 13 / 7)
        assert records(cluster) == 21, "replayed is not removed, refused again is not kept twice"

        code, purged = tool(cluster, "purge", "--all", "--yes")
        assert (code, purged["records"], records(cluster)) == (0, 21, 0)
        wait_until(lambda: told(cluster) == {}, what="told no more")
        publisher = Publisher(cluster.mqtt)
        publisher.send(b"never a point")
        publisher.close()
        wait_until(lambda: records(cluster) == 1, what="kept again: what it repeats is gone")
        see_two_bridges(cluster, children)


def see_two_bridges(cluster: Sandbox, children: Children) -> None:
    """What each of two bridges refused is told as its own, and that of one that has ended is told on."""
    command = (sys.executable, "-m", "workers.bridge", "--id", "bridge2")
    second = children.start(*command, cwd=ROOT, env=cluster.environment)
    publisher = Publisher(cluster.mqtt)

    def both_refused() -> bool:
        publisher.send(b"never a point")  # again: the second one may not have subscribed yet
        return told_by_all(cluster).get("bridge2", {}).get("not-json", 0) > 0

    wait_until(both_refused, what="refused by both")
    publisher.close()
    second.terminate()
    assert second.wait(30) == 0
    found = told_by_all(cluster)
    assert found.keys() == {"bridge1", "bridge2"}
    assert all(counts.keys() == {"not-json"} for counts in found.values())
