"""What `python -m tools.bench page` makes of files and frames."""

from pathlib import Path

import pytest

from tools.bench import page

FRAME_MS = 1000 / 60


def test_entry_is_what_the_index_names_and_all_counts_as_it_lies_compressed(tmp_path: Path) -> None:
    (tmp_path / "assets").mkdir()
    for name, kilobytes in (("index.html", 1), ("assets/a.js", 10), ("assets/b.js", 100)):
        (tmp_path / name).write_text('<script src="/assets/a.js"></script>' if name == "index.html" else "x")
        (tmp_path / f"{name}.br").write_bytes(bytes(1000 * kilobytes))
        (tmp_path / f"{name}.gz").write_bytes(bytes(2000 * kilobytes))
    found = [(each.of, each.what, each.ours) for each in page.sizes(tmp_path)]
    assert found == [
        ("entry, 2 files", "bytes as .br", 11),
        ("entry, 2 files", "bytes as .gz", 22),
        ("everything, 3 files", "bytes as .br", 111),
        ("everything, 3 files", "bytes as .gz", 222),
    ]


def test_a_frame_of_three_times_the_time_drops_two() -> None:
    found = {each.what: each for each in page.frames([FRAME_MS] * 97 + [3 * FRAME_MS])}
    assert found["frames dropped"].ours == pytest.approx(2)
    assert found["frames dropped"].met is False
    assert found["frames per second"].ours == pytest.approx(58.8)
    assert found["frame, median"].ours == pytest.approx(FRAME_MS)
