"""The HTTP API against docs/openapi.yaml on a real cluster: requests that the file allows, and that it forbids.

No 5xx, no status, type or header that the file does not know, every answer of the shape that it says, and what it
forbids is refused. The same requests on every run.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
import yaml
from hypothesis import HealthCheck, Phase, settings
from schemathesis.specs.openapi import checks as of_openapi

from tests.queried import Queried
from tests.support import ROOT, Children

OPENAPI: dict[str, Any] = yaml.safe_load((ROOT / "docs/openapi.yaml").read_text())
STREAM = "/live"  # has no end: tests of its own
LEAST_S = 5.0  # of a timeout: a shorter one is allowed, and then 503 is the right answer
EXAMPLES = 25  # of each operation
CHECKS = [
    schemathesis.checks.not_a_server_error,
    of_openapi.status_code_conformance,
    of_openapi.content_type_conformance,
    of_openapi.response_headers_conformance,
    of_openapi.response_schema_conformance,
    of_openapi.negative_data_rejection,
    of_openapi.positive_data_acceptance,
    of_openapi.missing_required_header,
    of_openapi.unsupported_method,
    of_openapi.use_after_free,
    of_openapi.ensure_resource_availability,
    of_openapi.ignored_auth,
]

# What a schema cannot say (the order of two times, bytes of a text, that a pattern can be compiled) may be refused.
ACCEPTED = ["2xx", "400", "401", "403", "404", "422", "429", "503"]
# A list that is too long may make a body that is too large (413).
REFUSED = ["400", "401", "403", "404", "405", "413", "422", "429", "503"]
CONFIG = schemathesis.Config.from_dict(
    {
        "checks": {
            "positive_data_acceptance": {"expected-statuses": ACCEPTED},
            "negative_data_rejection": {"expected-statuses": REFUSED},
        }
    }
)
schema = schemathesis.openapi.from_dict(OPENAPI, config=CONFIG)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Queried]:
    children = Children()
    made = Queried(children, tmp_path_factory.mktemp("schemathesis"), 3).wait_ready()
    series = [("sensor_1", "temperature", ()), ("sensor_1", "temperature", (("room", "x"),)), ("b", "temperature", ())]
    made.push((series[at % 3], (1_700_000_000 + at) * 10**9, at / 7) for at in range(300))
    yield made
    children.stop_all()


@schema.exclude(path=STREAM).parametrize()
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_every_answer_is_one_that_the_document_allows(case: Any, cluster: Queried) -> None:
    for fields in (case.body, case.query):
        if isinstance(fields, dict) and _is_short(fields.get("timeout_s")):
            fields["timeout_s"] = LEAST_S
    case.call_and_validate(base_url=cluster.url, checks=CHECKS, timeout=30)


def _is_short(seconds: Any) -> bool:
    try:
        return not isinstance(seconds, bool) and 0 < float(seconds) < LEAST_S
    except (TypeError, ValueError, OverflowError):
        return False
