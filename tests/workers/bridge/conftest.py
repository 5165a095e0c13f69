"""Fixtures of the bridge's tests."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import Children
from tests.workers.bridge.harness import Place

MakePlace = Any


@pytest.fixture
def make_place(tmp_path: Path, children: Children) -> Iterator[MakePlace]:
    """Makes scratch clusters, each with settings of its own."""
    places: list[Place] = []

    def make(**settings: Any) -> Place:
        directory = tmp_path / str(len(places))
        directory.mkdir()
        places.append(Place(directory, children, **settings))
        return places[-1]

    yield make
    for place in places:
        place.stop_nodes()
