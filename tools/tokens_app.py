"""tools/tokens: adds, lists and removes the tokens of HTTP.

Owns the commands and what they print; the only program that writes the tokens file (query.tokens_file). Exit codes:
0 done, 1 failed, 2 wrong usage.
"""

import functools
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from common import clock, config, timestamps, tokens
from common.errors import ConfigError, MinitrueError
from common.timestamps import NS_PER_S
from common.tokens import Token
from tools.output import DASHES, EXIT_CODES, Output, new_table, time_text

_UNITS_S: Final = {"h": 3600, "d": 86400, "w": 7 * 86400}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line, by default this process's; errors are one line on stderr."""
    try:
        cli(arguments, prog_name="tokens")
    except MinitrueError as error:
        print(f"tokens: {error}", file=sys.stderr)
        sys.exit(1)


@click.group(context_settings=DASHES, epilog=EXIT_CODES)
def cli() -> None:
    """The tokens of HTTP: who may ask, and what.

    They lie in the file that query.tokens_file names, as hashes. Query workers see a change within a second.

    \b
    Scopes: read asks, write stores points, delete deletes them, admin does all of these and what concerns the cluster.

    \b
    A dashboard:               tokens add grafana --scope read
    A job that cleans up:      tokens add cleaner --scope read --scope delete --expires 90d
    Who is there?              tokens list
    It is not to be any more:  tokens remove cleaner
    """


def command(name: str) -> Callable[[Callable[..., int]], click.Command]:
    """A command of the group: (path of the file, output, ...) to an exit code."""

    def decorate(function: Callable[..., int]) -> click.Command:
        @click.option("--config", "config_file", type=click.Path(path_type=Path), help="Settings [conf/minitrue.toml].")
        @click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, for programs.")
        @functools.wraps(function)
        def run(config_file: Path | None, as_json: bool, **values: Any) -> None:
            settings = config.load(config_file)
            if not settings.query.tokens_file:
                raise ConfigError(f'{settings.file}: {tokens.SETTING} = "": want a file\'s name, such as tokens.json')
            sys.exit(function(settings.path(settings.query.tokens_file), Output(as_json), **values))

        return cli.command(name, epilog=EXIT_CODES, context_settings=DASHES)(run)

    return decorate


@command("add")
@click.argument("name")
@click.option("--scope", "scopes", type=click.Choice(tokens.SCOPES), multiple=True, required=True, help="One each.")
@click.option("--expires", metavar="WHEN", help="Such as 90d (h, d, w), or an RFC 3339 time [never].")
def add(path: Path, output: Output, name: str, scopes: Sequence[tokens.Scope], expires: str | None) -> int:
    """Make a token NAME and print it, this once.

    Nobody can print it again: the file holds its hash. Requests bear it in the header "Authorization: Bearer TOKEN".
    """
    if not re.fullmatch(tokens.NAME_PATTERN, name):
        raise click.BadParameter(f"got {name!r}, want letters, digits, _ . @ or -, at most 64", param_hint="NAME")
    known = tokens.load(path) if path.exists() else []
    if any(token.name == name for token in known):
        raise ConfigError(f"{path} has a token {name} already; remove it first, or take another name")
    text, now_ns = tokens.new_text(), clock.wall_ns() // NS_PER_S * NS_PER_S
    until = _expiry(expires, now_ns)
    made = Token(name, tokens.digest(text), sorted(set(scopes)), time_text(now_ns), until)
    tokens.save(path, [*known, made])
    output.say(f"A token {name} for {', '.join(made.scopes)}{f', until {until}' if until else ''}, in {path}:")
    output.say(text, 'It is not shown again. next: curl -H "Authorization: Bearer TOKEN" ...')
    output.result({"name": name, "token": text, "scopes": made.scopes, "expires": until or None})
    return 0


def _expiry(text: str | None, now_ns: int) -> str:
    if text is None:
        return ""
    if match := re.fullmatch(r"([1-9]\d{0,5})([hdw])", text, re.ASCII):
        return time_text(now_ns + int(match[1]) * _UNITS_S[match[2]] * NS_PER_S)
    try:
        return time_text(timestamps.from_text(text))
    except ValueError as error:
        raise click.BadParameter(f"{error}, or a length such as 90d (h, d, w)", param_hint="--expires") from error


@command("list")
def show(path: Path, output: Output) -> int:
    """Show which tokens there are, and what they allow."""
    known, now_ns = tokens.load(path), clock.wall_ns()
    table = new_table("name", "scopes", "created", "expires")
    for token in known:
        over = " (over)" if token.is_over(now_ns) else ""
        table.add_row(token.name, ", ".join(token.scopes), token.created, (token.expires or "never") + over)
    output.say(table if known else f"{path} has no tokens. next: tools/tokens add NAME --scope read")
    shown = [msgspec.structs.asdict(token) | {"over": token.is_over(now_ns)} for token in known]
    output.result([{key: value for key, value in token.items() if key != "sha256"} for token in shown])
    return 0


@command("remove")
@click.argument("name")
def remove(path: Path, output: Output, name: str) -> int:
    """Remove the token NAME: within a second nobody gets in with it."""
    known = tokens.load(path)
    left = [token for token in known if token.name != name]
    if len(left) == len(known):
        names = ", ".join(token.name for token in known) or "none"
        raise ConfigError(f"{path} has no token {name}, it has {names}")
    tokens.save(path, left)
    output.say(f"The token {name} is removed from {path}.")
    output.result({"removed": name})
    return 0


if __name__ == "__main__":
    main()
