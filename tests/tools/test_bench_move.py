"""What `python -m tools.bench move` measures with: known answers, and PUBACKs between two looks at a histogram."""

import http.server
import json
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from tools.bench import data
from tools.bench.move import _questions
from tools.bench.move_load import Acks, Asked, Question

METRICS = """# TYPE minitrue_bridge_puback_seconds histogram
minitrue_bridge_puback_seconds_bucket{process="bridge",le="0.01"} {first}
minitrue_bridge_puback_seconds_bucket{process="bridge",le="0.1"} {second}
minitrue_bridge_puback_seconds_bucket{process="bridge",le="+Inf"} {last}
minitrue_bridge_puback_seconds_count{process="bridge"} {last}
"""


class Told(http.server.BaseHTTPRequestHandler):
    """Serves the next of some texts."""

    texts: Iterator[str]

    def do_GET(self) -> None:
        text = next(self.texts).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    counts = [(5, 5, 5), (5, 104, 105)]
    Told.texts = iter(
        METRICS.replace("{first}", str(a)).replace("{second}", str(b)).replace("{last}", str(c)) for a, b, c in counts
    )
    with http.server.HTTPServer(("127.0.0.1", 0), Told) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_what_lies_between_two_looks_at_a_histogram_is_told_by_quantile(url: str) -> None:
    earlier = Acks.of(url)
    found = Acks.of(url).since(earlier)
    assert found.counts == ((0.01, 0), (0.1, 99), (float("inf"), 1))
    assert found.quantile_ms(0.5) == pytest.approx(10 + 90 * 50 / 99)
    assert found.quantile_ms(0.99) == pytest.approx(100)
    assert found.quantile_ms(1.0) == pytest.approx(100), "the last bucket has no end"
    assert Acks(()).quantile_ms(0.99) == 0


def test_an_answer_is_right_when_it_is_whole_and_says_what_is_known() -> None:
    held = data.made("m", 3, 20, data.regular(data.SECOND_NS, 5))
    count, least, _, *_ = _questions(held)
    first = held.rows.values[held.rows.owners == 0]
    assert (count.result, least.result) == (20, first.min())
    assert json.loads(least.body)["operation"] == "min"
    asked = Question("{}", float(np.float64(1.5)), 20)

    def answer(result: float = 1.5, count: int = 20, complete: bool = True) -> bytes:
        return json.dumps({"result": result, "count": count, "coverage": {"complete": complete}}).encode()

    assert asked.is_answered(200, answer())
    assert not asked.is_answered(200, answer(result=1.25))
    assert not asked.is_answered(200, answer(count=19))
    assert not asked.is_answered(200, answer(complete=False))
    assert not asked.is_answered(503, answer())


def test_quantiles_of_questions_are_those_of_their_times() -> None:
    assert Asked((), 0).quantile_ms(0.5) == 0
    assert Asked(tuple(each / 1e3 for each in range(1, 100)), 0).quantile_ms(0.5) == pytest.approx(50)
