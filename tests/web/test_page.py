"""The page in a browser, beside a cluster with simulated sensors; what is looked at stands in web/tests."""

import os
import shutil
from collections.abc import Iterator

import pytest

from tests.support import CI_VARIABLE
from tests.web.page import CHROMIUM, PLAYWRIGHT, WEB, cluster_with_page, playwright, server_with_tokens

# In this order: pictures are of a tidy cluster; the last ones take nodes away and add one.
FIRST, LAST = "shots.spec.ts", "cluster.spec.ts"
SIGN_IN = "auth.spec.ts"  # beside a server of its own, which wants tokens
SPECS = sorted(
    (path.name for path in (WEB / "tests").glob("*.spec.ts") if path.name != SIGN_IN),
    key=lambda name: (name != FIRST, name == LAST, name),
)


def _missing() -> str:
    """What is not here and has to be, "" for nothing."""
    if not any(map(shutil.which, CHROMIUM)):
        return "chromium is not installed"
    if not PLAYWRIGHT.exists() or shutil.which("node") is None:
        return "web/node_modules is not there: make env, with Node 18 or newer"
    return "" if (WEB / "dist" / "index.html").exists() else "the page is not built: make env, with Node 18 or newer"


@pytest.fixture(scope="module")
def chromium() -> str:
    """The browser; skips, or fails in CI, where it or the page is missing."""
    if missing := _missing():
        text = f"{missing}; the page was NOT tested in a browser"
        if os.environ.get(CI_VARIABLE):
            pytest.fail(text)
        pytest.skip(text)
    return next(filter(None, map(shutil.which, CHROMIUM)))


@pytest.fixture(scope="module")
def cluster(chromium: str) -> Iterator[dict[str, str]]:
    with cluster_with_page() as environment:
        yield environment


@pytest.mark.parametrize("spec", SPECS)
def test_the_page_shows_what_the_api_tells(spec: str, cluster: dict[str, str], chromium: str) -> None:
    run = playwright(spec, environment=cluster, chromium=chromium)
    assert run.returncode == 0, run.stdout


def test_the_page_signs_in_where_the_server_wants_tokens(cluster: dict[str, str], chromium: str) -> None:
    with server_with_tokens(cluster) as environment:
        run = playwright(SIGN_IN, environment=environment, chromium=chromium)
    assert run.returncode == 0, run.stdout
