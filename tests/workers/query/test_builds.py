"""A page that is built while a worker runs: served whole, without a restart; open tabs keep the files of theirs."""

import os
import shutil
import threading
import time
from pathlib import Path

import pytest

from tests.workers.query.inside import Inside
from workers.query import builds, page
from workers.query.builds import Builds

LONG_AGO_S = 3600


@pytest.fixture(autouse=True)
def looking_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builds, "LOOK_S", 0.0)


def build(folder: Path, name: str, age_s: float = LONG_AGO_S) -> None:
    """What `npm run build` leaves, with one script of this name, so long ago."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "assets").mkdir(parents=True)
    written_s = time.time() - age_s
    for path in (folder / "index.html", folder / "assets" / f"{name}.js"):
        path.write_text(name)
        os.utime(path, (written_s, written_s))


def shown(found: Builds) -> str:
    """What / has; "" where it says how to build it."""
    home = found.home()
    return home.bodies[page.IDENTITY].data.decode() if home else ""


def test_a_page_that_is_built_later_is_there_without_a_restart(tmp_path: Path) -> None:
    inside = Inside(page_dir=str(tmp_path))
    html = {"Accept": "text/html"}
    assert b"not built" in b"".join(inside.open("GET", "/", headers=html)[2])
    build(tmp_path, "first")
    assert b"".join(inside.open("GET", "/", headers=html)[2]) == b"first"
    assert inside.open("GET", "/assets/first.js")[0] == 200


def test_a_new_build_replaces_the_old_one_whose_files_stay_for_open_tabs(tmp_path: Path) -> None:
    build(tmp_path, "a")
    found = Builds(tmp_path)
    for age_s, name in enumerate("bcd"):
        build(tmp_path, name, LONG_AGO_S - age_s - 1)
        assert shown(found) == name
    assert [found.asset(f"{name}.js") is not None for name in "abcd"] == [False, True, True, True]


def test_a_build_that_is_being_written_is_left_alone_until_it_is_done(tmp_path: Path) -> None:
    build(tmp_path, "old")
    found = Builds(tmp_path)
    shutil.rmtree(tmp_path)
    assert shown(found) == "old"
    build(tmp_path, "new", age_s=0)
    assert shown(found) == "old" and found.asset("new.js") is None
    build(tmp_path, "new", age_s=2 * builds.SETTLED_S)
    assert shown(found) == "new" and found.asset("new.js") and found.asset("old.js")


def test_a_build_that_was_not_whole_at_the_start_is_read_again(tmp_path: Path) -> None:
    build(tmp_path, "page", age_s=0)
    (tmp_path / "assets" / "page.js").unlink()
    found = Builds(tmp_path)
    assert shown(found) == "page"
    build(tmp_path, "page")
    assert found.asset("page.js")


def test_a_file_of_a_build_that_another_worker_serves_already_is_looked_for(tmp_path: Path) -> None:
    build(tmp_path, "old")
    found = Builds(tmp_path)
    build(tmp_path, "new", LONG_AGO_S - 1)
    assert found.asset("new.js") and shown(found) == "new"


def test_a_folder_that_has_not_changed_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(tmp_path, "page")
    found = Builds(tmp_path)
    monkeypatch.setattr(page, "load", lambda _: pytest.fail("read again"))
    assert shown(found) == "page" and found.asset("none.js") is None


def test_it_is_looked_at_once_in_a_while_however_many_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builds, "LOOK_S", 3600.0)
    found = Builds(tmp_path)
    assert shown(found) == ""
    build(tmp_path, "page")
    assert shown(found) == ""


def test_who_asks_while_another_reads_a_new_build_has_the_old_one_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(tmp_path, "old")
    found = Builds(tmp_path)
    build(tmp_path, "new", LONG_AGO_S - 1)
    begun, go_on, load = threading.Event(), threading.Event(), page.load

    def slow(folder: Path) -> page.Page:
        begun.set()
        assert go_on.wait(30)
        return load(folder)

    monkeypatch.setattr(page, "load", slow)
    reading = threading.Thread(target=found.home)
    reading.start()
    assert begun.wait(30)
    assert shown(found) == "old"
    go_on.set()
    reading.join()
    assert shown(found) == "new"


def test_what_takes_the_place_of_a_page_and_is_none_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(tmp_path, "old")
    found = Builds(tmp_path)
    build(tmp_path, "new", LONG_AGO_S - 1)
    monkeypatch.setattr(page, "MAX_BYTES", 1)
    assert shown(found) == "old"
