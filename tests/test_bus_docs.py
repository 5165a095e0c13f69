"""The bus protocol's page names every kind, header field, body field and error code that the code has."""

import re

import msgspec
import pytest

from common import protocol
from tests.support import ROOT

TEXT = (ROOT / "docs" / "bus-protocol.md").read_text()
STRUCTS = [
    value
    for value in vars(protocol).values()
    if isinstance(value, type) and issubclass(value, msgspec.Struct) and value is not msgspec.Struct
]
ERRORS = [value for name, value in vars(protocol).items() if name.startswith("ERR_")]


@pytest.mark.parametrize("kind", sorted(kind.decode() for kind in protocol.KINDS))
def test_kind_is_documented(kind: str) -> None:
    assert re.search(rf"^\| `{kind}` \|", TEXT, re.MULTILINE)


@pytest.mark.parametrize("code", ERRORS)
def test_error_code_is_documented(code: str) -> None:
    assert f"`{code}`" in TEXT


@pytest.mark.parametrize("struct", STRUCTS, ids=lambda struct: struct.__name__)
def test_fields_are_documented(struct: type[msgspec.Struct]) -> None:
    missing = [field for field in struct.__struct_fields__ if f"`{field}`" not in TEXT]
    assert not missing, f"docs/bus-protocol.md does not mention {missing} of {struct.__name__}"


def test_version_is_documented() -> None:
    assert f"Protocol version: **{protocol.VERSION}**" in TEXT
