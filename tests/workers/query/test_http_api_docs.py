"""docs/http-api.md and docs/openapi.yaml say what the query worker does."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from common import config
from tests.support import ROOT, Children
from tests.workers.query.fake import point
from tests.workers.query.running import Worker
from workers.query import handlers_query, http, operations, request
from workers.query import routes as routing
from workers.query.coverage import Coverage

PROSE = (ROOT / "docs/http-api.md").read_text()
OPENAPI: dict[str, Any] = yaml.safe_load((ROOT / "docs/openapi.yaml").read_text())
SCHEMAS: dict[str, Any] = OPENAPI["components"]["schemas"]
SOURCE = "".join(path.read_text() for path in sorted(Path(ROOT, "workers/query").glob("*.py")))


def blocks(mark: str) -> dict[str, str]:
    """The fenced blocks that stand behind a mark, by name."""
    return dict(re.findall(rf"<!-- {mark}: (.+?) -->\n```\w*\n(.+?)\n```", PROSE, re.DOTALL))


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    children = Children()
    stored = [
        point("sensor_1", "temperature", (1_700_000_000 + n) * 10**9, value)
        for n, value in enumerate((20.0, 20.5, 21.0, 21.5))
    ]
    stored += [
        point("meter_1", "energy", (1_700_000_000 + 60 * n) * 10**9, value)
        for n, value in enumerate((100.0, 160.0, 5.0, 65.0))
    ]
    stored += [  # each hour of three days, one of them of 23 hours, from 2024-03-30 in Berlin
        point("plant", "power", (1_711_753_200 + 3600 * n) * 10**9, float(n % 4)) for n in range(71)
    ]
    stored += [
        point(device, "humidity", (1_700_000_000 + second) * 10**9, value, tags)
        for device, tags, second, value in (
            ("hygro_1", {"room": "hall"}, 0, 40.0),
            ("hygro_1", {"room": "hall"}, 3, 46.0),
            ("hygro_2", {"room": "lab"}, 0, 55.0),
            ("hygro_3", {"room": "lab"}, 1, 57.0),
            ("hygro_4", None, 2, 61.5),
        )
    ]
    running = Worker(children, tmp_path_factory.mktemp("docs"), stored, partitions=1024)
    yield running
    children.stop_all()
    running.stop()


@pytest.mark.parametrize("name", blocks("example"))
def test_an_example_of_the_docs_is_answered_as_they_say(worker: Worker, name: str) -> None:
    command = shlex.split(blocks("example")[name])
    assert command[:2] == ["curl", "-s"]
    url = urlsplit(command[2])
    body = command[command.index("-d") + 1] if "-d" in command else None
    _, _, answer = worker.call("POST" if body else "GET", f"{url.path}?{url.query}", body)
    wanted = json.loads(blocks("answer")[name])
    if "coverage" not in wanted:
        answer.pop("coverage", None)
    for each in (answer, wanted):
        each.pop("duration_ns", None)
        for row in each.get("rows", ()):
            row.pop("age_s", None)
    assert answer == wanted
    assert list(answer) == list(wanted)


def test_every_example_has_an_answer() -> None:
    assert set(blocks("example")) == set(blocks("answer")) != set()


def test_both_documents_name_every_route_and_no_other() -> None:
    routes = {(method, route.path) for route in routing.ROUTES for method in route.methods}
    routes |= {("GET", "/"), ("GET", "/assets/{name}")}
    described = {(method.upper(), path) for path, methods in OPENAPI["paths"].items() for method in methods}
    assert described == routes
    told = re.findall(r"^\| `((?:GET|POST|DELETE) /\S*)` \|", PROSE, re.MULTILINE)
    assert {tuple(each.split()) for each in told} == routes
    assert set(http.ROUTES_SHOWN) == {f"{'|'.join(route.methods)} {route.path}" for route in routing.ROUTES}


@pytest.mark.parametrize(
    ("schema", "struct"),
    [("Query", request.QueryBody), ("Answer", handlers_query.Answer), ("Coverage", Coverage)],
)
def test_the_schemas_have_the_fields_of_the_code(schema: str, struct: Any) -> None:
    assert set(SCHEMAS[schema]["properties"]) == set(struct.__struct_fields__)


def test_operations_errors_and_limits_are_those_of_the_code() -> None:
    assert SCHEMAS["Operation"]["anyOf"][0]["enum"] == list(operations.PLAIN)
    used = set(re.findall(r"(?:(?:Refusal|Denied)\(\d+, |Incomplete\()\"(\w+)\"", SOURCE))
    used |= {"not_found", "method_not_allowed", "http_error", "limit", "too_large"}
    assert set(SCHEMAS["Error"]["properties"]["error"]["enum"]) == used
    for error in used - {"http_error"}:
        assert f"`{error}`" in PROSE
    limits = config.Ingest()
    assert SCHEMAS["Exact"]["properties"]["exact"]["maxLength"] == limits.max_id_bytes
    assert SCHEMAS["TagPatterns"]["maxProperties"] == limits.max_tags


def test_every_reference_of_the_openapi_file_leads_somewhere() -> None:
    for reference in set(re.findall(r'\$ref: "#/([^"]+)"', (ROOT / "docs/openapi.yaml").read_text())):
        place: Any = OPENAPI
        for part in reference.split("/"):
            place = place[part]
        assert place


def test_every_component_of_the_openapi_file_is_used() -> None:
    used = set(re.findall(r'\$ref: "#/components/([^"]+)"', (ROOT / "docs/openapi.yaml").read_text()))
    components = {kind: names for kind, names in OPENAPI["components"].items() if kind != "securitySchemes"}
    assert {f"{kind}/{name}" for kind, names in components.items() for name in names} == used
