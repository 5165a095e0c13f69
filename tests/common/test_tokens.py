"""The file of tokens, and the tool that writes it."""

import json
import stat

import pytest
from click.testing import CliRunner

from common import tokens
from common.errors import ConfigError
from common.tokens import Token
from tools import tokens_app

HASH = "0" * 64


@pytest.fixture
def file(tmp_path, monkeypatch):
    (tmp_path / "minitrue.toml").write_text('query.tokens_file = "tokens.json"\n')
    monkeypatch.setenv("MINITRUE_CONFIG", str(tmp_path / "minitrue.toml"))
    return tmp_path / "tokens.json"


def _run(*arguments):
    return CliRunner().invoke(tokens_app.cli, [str(each) for each in arguments])


def _json(*arguments):
    done = _run(*arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.output)


def test_a_token_is_printed_once_and_kept_as_its_hash(file):
    made = _json("add", "grafana", "--scope", "read", "--scope", "delete", "--scope", "read")
    assert made["scopes"] == ["delete", "read"] and made["expires"] is None
    assert len(made["token"]) == len(tokens.PREFIX) + 43  # 256 bits in base64
    assert made["token"] not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    (kept,) = tokens.load(file)
    assert tokens.find([kept], made["token"]) == kept
    assert tokens.find([kept], made["token"][:-1]) is None and tokens.find([kept], "") is None
    (listed,) = _json("list")
    assert listed["name"] == "grafana" and "sha256" not in listed and listed["over"] is False


def test_removing_a_token_leaves_the_others(file):
    kept = _json("add", "a", "--scope", "read")
    gone = _json("add", "b", "--scope", "admin", "--expires", "2001-01-01T00:00:00Z")
    assert gone["token"] != kept["token"]
    assert [token["over"] for token in _json("list")] == [False, True]
    _json("remove", "b")
    assert [token.name for token in tokens.load(file)] == ["a"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["add", "a b", "--scope", "read"], "got 'a b', want letters"),
        (["add", "x"], "Missing option '--scope'"),
        (["add", "x", "--scope", "all"], "'all' is not one of 'read', 'write', 'delete', 'admin'"),
        (["add", "x", "--scope", "read", "--expires", "soon"], "or a length such as 90d"),
        (["add", "x", "--scope", "read", "--expires", "0d"], "or a length such as 90d"),
    ],
)
def test_wrong_usage_is_exit_code_2_and_writes_nothing(file, arguments, text):
    done = _run(*arguments)
    assert (done.exit_code, file.exists()) == (2, False)
    assert text in done.output.replace("\n", " ")


def test_an_expiry_is_a_length_or_a_time(file):
    assert _json("add", "a", "--scope", "read", "--expires", "2030-01-01T01:00:00+01:00")["expires"] == (
        "2030-01-01T00:00:00Z"
    )
    _json("add", "b", "--scope", "read", "--expires", "2d")
    *_, token = tokens.load(file)
    from_ns = tokens.timestamps.from_text
    assert from_ns(token.expires) - from_ns(token.created) == 2 * 86_400 * 10**9
    assert [token.is_over(from_ns(token.expires) + late) for late in (-1, 0)] == [False, True]


def test_a_second_token_of_a_name_and_a_missing_setting_are_errors(file, capsys, monkeypatch):
    _json("add", "a", "--scope", "read")
    for arguments, text in (
        (["add", "a", "--scope", "read"], "has a token a already"),
        (["remove", "z"], "has no token z, it has a"),
    ):
        with pytest.raises(SystemExit) as ended:
            tokens_app.main(arguments)
        assert ended.value.code == 1 and text in capsys.readouterr().err
    monkeypatch.setenv("MINITRUE__QUERY__TOKENS_FILE", "")
    with pytest.raises(SystemExit):
        tokens_app.main(["list"])
    assert 'query.tokens_file = "": want a file' in capsys.readouterr().err


def _token(**changes):
    return {"name": "a", "sha256": HASH, "scopes": ["read"], "created": "2024-01-01T00:00:00Z"} | changes


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        json.dumps({"format": 2, "tokens": []}),
        *(
            json.dumps({"format": 1, "tokens": [_token(**change)]})
            for change in ({"scopes": []}, {"scopes": ["all"]}, {"sha256": "A" * 64}, {"name": "a\nb"}, {"more": 1},
                           {"created": "now"}, {"expires": "never"})
        ),
        json.dumps({"format": 1, "tokens": [_token(), _token()]}),
    ],
)  # fmt: skip
def test_a_file_that_is_none_of_tokens_is_refused(tmp_path, content):
    path = tmp_path / "tokens.json"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=r"^query.tokens_file: "):
        tokens.load(path)


def test_a_file_that_others_may_read_is_refused(tmp_path):
    path = tmp_path / "tokens.json"
    tokens.save(path, [Token("a", HASH, ["read"], "2024-01-01T00:00:00Z")])
    assert [token.name for token in tokens.load(path)] == ["a"]
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="has mode 0644, want 0600"):
        tokens.load(path)
