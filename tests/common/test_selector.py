"""Which series a selector names."""

import pytest

from common.selector import Selector
from common.series import Series

PLAIN = Series("pump:1", "temperature")
TAGGED = Series("pump:1", "temperature", (("room", "7"),))
OTHER_METRIC = Series("pump:1", "pressure")
OTHER_DEVICE = Series("pump:2", "temperature")


@pytest.mark.parametrize(
    ("selector", "named"),
    [
        (Selector("pump:1"), {PLAIN, TAGGED, OTHER_METRIC}),
        (Selector("pump:1", "temperature"), {PLAIN, TAGGED}),
        (Selector("pump:1", "temperature", {}), {PLAIN}),
        (Selector("pump:1", "temperature", {"room": "7"}), {TAGGED}),
        (Selector("pump:1", None, {"room": "7"}), {TAGGED}),
        (Selector("pump:1", "temperature", {"room": "8"}), set()),
        (Selector("pump:1", "temperature", {"room": "7", "floor": "1"}), set()),
        (Selector("pump"), set()),
        (Selector(""), set()),
    ],
)
def test_a_selector_names_the_series_of_its_device_metric_and_tags(selector: Selector, named: set[Series]) -> None:
    found = {each for each in (PLAIN, TAGGED, OTHER_METRIC, OTHER_DEVICE) if selector.matches(each)}
    assert found == named
