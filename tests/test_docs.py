"""What the documents say is so: every setting, its default and its meaning."""

import re
import tomllib
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from common import config
from tests.support import ROOT

CONFIGURATION = (ROOT / "docs" / "configuration.md").read_text()
FILE = (ROOT / "conf" / "minitrue.toml").read_text()


def _defaults() -> dict[str, Any]:
    settings = msgspec.to_builtins(config.Settings())
    return {
        f"{section}.{key}": value
        for section, values in settings.items()
        if isinstance(values, dict)
        for key, value in values.items()
    }


def _explained() -> Iterator[tuple[str, str, str]]:
    """Setting, default and meaning of each row of the tables in docs/configuration.md."""
    for section, table in re.findall(r"^## \[(\w+)\]\n(.*?)(?=^## |\Z)", CONFIGURATION, re.MULTILINE | re.DOTALL):
        settings, _, _ = table.partition("\n### ")
        for key, default, meaning in re.findall(r"^\| `(\w+)` \| `(.*?)` \| (.+) \|$", settings, re.MULTILINE):
            yield f"{section}.{key}", default, meaning


def _in_full(name: str, value: Any) -> Any:
    """A setting as documents write it, with the defaults that a subscription leaves out."""
    if name == "mqtt.subscriptions":
        return msgspec.to_builtins([config.Subscription(**table) for table in value])
    return value


def test_the_configuration_document_explains_every_setting_of_a_subscription_with_its_default():
    table = CONFIGURATION.partition("### [[mqtt.subscriptions]]")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (?:`(.*?)` )?\| .+\. \|$", table, re.MULTILINE)
    explained = {name: tomllib.loads(f"x = {text}")["x"] if text else None for name, text in rows}
    assert explained == {**_defaults()["mqtt.subscriptions"][0], "filter": None}


def test_the_configuration_file_holds_every_setting_with_its_default():
    sections = tomllib.loads(FILE).items()
    found = {f"{section}.{key}": value for section, table in sections for key, value in table.items()}
    assert found == _defaults()


def test_the_configuration_file_explains_every_setting():
    # A comment stands above each setting, or above the group of settings that it speaks of.
    bare = [
        (above, line) for above, line in zip(FILE.splitlines(), FILE.splitlines()[1:], strict=False)
        if "=" in line and not line.startswith("#") and (not above or above.startswith("["))
    ]  # fmt: skip
    assert bare == []


def test_the_configuration_document_explains_every_setting():
    assert sorted(name for name, _, _ in _explained()) == sorted(_defaults())


@pytest.mark.parametrize(("name", "default", "meaning"), list(_explained()), ids=lambda part: part[:40])
def test_the_configuration_document_gives_the_true_default(name, default, meaning):
    assert _in_full(name, tomllib.loads(f"x = {default}")["x"]) == _defaults()[name]
    assert meaning.endswith(".")


def test_links_between_documents_lead_somewhere():
    broken = [
        (page.name, target)
        for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
        if not (page.parent / target).exists()
    ]
    assert broken == []
