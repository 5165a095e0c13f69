"""Tokens of HTTP: what one is, what it allows, and the file that they lie in (query.tokens_file).

Owns the file's format: JSON, {"format": 1, "tokens": [{name, sha256, scopes, created, expires?}]}, mode 0600, replaced
whole. It holds hashes, never a token: a token is 256 random bits, so its SHA-256 tells nobody anything, and needs no
salt. tools/tokens writes the file, query workers read it. Keeps no state; any thread.
"""

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final, Literal, get_args

import msgspec
from msgspec import Meta, Struct

from common import private, timestamps
from common.errors import MSGSPEC_ERRORS, ConfigError

Scope = Literal["read", "write", "delete", "admin"]
SCOPES: Final[tuple[Scope, ...]] = get_args(Scope)
ADMIN: Final = "admin"  # the scope that allows what the others do, too
FORMAT: Final = 1
SETTING: Final = "query.tokens_file"
PREFIX: Final = "mt_"  # so that whoever finds a token somewhere knows what it is
TOKEN_BYTES: Final = 32
NAME_PATTERN: Final = "^[A-Za-z0-9_.@-]{1,64}$"  # goes to logs and audit lines


class Token(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One token. sha256: of its text, as hex. created, expires: RFC 3339; no `expires`: never."""

    name: Annotated[str, Meta(pattern=NAME_PATTERN)]
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    scopes: Annotated[list[Scope], Meta(min_length=1)]
    created: str
    expires: str = ""

    def allows(self, scope: str) -> bool:
        """Whether it may be used for a scope."""
        return scope in self.scopes or ADMIN in self.scopes

    def is_over(self, now_ns: int) -> bool:
        """Whether it has expired."""
        return bool(self.expires) and now_ns >= timestamps.from_text(self.expires)


class _File(Struct, frozen=True):
    format: int
    tokens: list[Token]


def new_text() -> str:
    """A new token."""
    return PREFIX + secrets.token_urlsafe(TOKEN_BYTES)


def digest(text: str) -> str:
    """The SHA-256 of a token, as hex."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def find(tokens: Sequence[Token], text: str) -> Token | None:
    """The token of this text, expired or not. Takes as long whichever it is, and whether it is one at all."""
    presented, found = digest(text), None
    for token in tokens:
        if hmac.compare_digest(token.sha256, presented):
            found = token
    return found


def load(path: Path) -> list[Token]:
    """All tokens of a file. Raises ConfigError: it cannot be read, others may read it, or it holds something else."""
    text = private.read(path, SETTING)
    try:
        file = msgspec.json.decode(text, type=_File)
        for token in file.tokens:
            timestamps.from_text(token.created)
            token.is_over(0)
    except (*MSGSPEC_ERRORS, ValueError) as error:
        raise ConfigError(f"{SETTING}: {path} is not a file of tokens: {error}") from error
    if file.format != FORMAT:
        raise ConfigError(f"{SETTING}: {path} has format {file.format}, want {FORMAT}")
    names = [token.name for token in file.tokens]
    if len(set(names)) < len(names):
        raise ConfigError(f"{SETTING}: {path} has two tokens of one name, want each name once")
    return file.tokens


def save(path: Path, tokens: Sequence[Token]) -> None:
    """Replace the file. Raises ConfigError where that cannot be."""
    data = msgspec.json.format(msgspec.json.encode(_File(FORMAT, list(tokens))), indent=2)
    private.write(path, data.decode() + "\n", SETTING)
