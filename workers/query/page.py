"""The page's files: read once, then served from memory. Owns them; constant after `load`, any thread.

What a build of web/ leaves is index.html and assets/, flat, whose names have a hash of the content; beside each file
may lie the same compressed, with .br or .gz behind its name. No path from outside touches the disk: a name is looked up
among those that were there when the build was read. builds.py says when that is.
"""

import hashlib
import stat
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

from common import log
from common.errors import MinitrueError

BUILT: Final = Path(__file__).resolve().parent.parent.parent / "web" / "dist"  # where the build leaves it
INDEX: Final = "index.html"
ASSETS: Final = "assets"
MAX_FILES: Final = 1000  # a build has some dozens; more is another folder than was meant
MAX_BYTES: Final = 64 << 20  # of all together, for the same reason
ENCODINGS: Final = {"br": ".br", "gzip": ".gz"}  # the better one first
OTHER_TYPE: Final = "application/octet-stream"
TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".ico": "image/x-icon",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".map": "application/json",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".webp": "image/webp",
    ".woff2": "font/woff2",
}
IDENTITY: Final = "identity"

logger = log.get("query.page")


class Body(NamedTuple):
    """A file's bytes in one encoding. tag: its ETag."""

    encoding: str
    data: bytes
    tag: str


class File(NamedTuple):
    """One file. bodies: by encoding, IDENTITY among them, the better one first."""

    content_type: str
    bodies: Mapping[str, Body]

    def best(self, accepted: str) -> Body:
        """The body for a header Accept-Encoding: the best compressed of those that may be sent."""
        allowed = encodings(accepted)
        return next((body for name, body in self.bodies.items() if name in allowed), self.bodies[IDENTITY])


class Page(NamedTuple):
    """What is served. home: index.html, None where the page is not built; assets: by name."""

    home: File | None
    assets: Mapping[str, File]


NONE: Final = Page(None, {})


class Marked(NamedTuple):
    """A file as it lies there: what changes when it does."""

    name: str
    mtime_ns: int
    size: int


Mark = tuple[Marked, ...]  # of all files that may be served; () where there is no page


class _NotAPage(MinitrueError):
    """A folder that holds no built page; the text says why."""


def load(folder: Path) -> Page:
    """The page in a folder, NONE where there is none or it cannot be used; the log says why."""
    if not (folder / INDEX).is_file():
        logger.info("the page is not built, / says how", folder=str(folder))
        return NONE
    try:
        files = _read(folder)
    except OSError as error:
        logger.error("the page cannot be read", file=error.filename, reason=error.strerror)
        return NONE
    except _NotAPage as error:
        logger.error("the page is not served", folder=str(folder), reason=str(error))
        return NONE
    prefix = f"{ASSETS}/"
    found = _files(files)
    assets = {name.removeprefix(prefix): file for name, file in found.items() if name.startswith(prefix)}
    return Page(found[INDEX], assets)


def mark(folder: Path) -> Mark:
    """What changes with the files of a page; () where there is none, or while it cannot be read."""
    try:
        if not (folder / INDEX).is_file():
            return ()
        found = [(name, path.stat()) for name, path in islice(_names(folder), MAX_FILES)]
    except OSError:  # a build removes what was there before
        return ()
    return tuple(Marked(name, told.st_mtime_ns, told.st_size) for name, told in found)


def encodings(accepted: str) -> frozenset[str]:
    """The names in a header Accept-Encoding but for those with q=0; `*` stands for nothing here."""
    named = (each.partition(";") for each in accepted.lower().split(","))
    return frozenset(name.strip() for name, _, rest in named if _quality(rest) > 0)


def matches(tag: str, condition: str) -> bool:
    """Whether a header If-None-Match names a tag, or any."""
    named = [each.strip().removeprefix("W/") for each in condition.split(",")]
    return tag in named or "*" in named


def _quality(parameters: str) -> float:
    """The q among a header's parameters; 1 where there is none, 0 for one that is no number."""
    for each in parameters.split(";"):
        name, _, value = each.partition("=")
        if name.strip() == "q":
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 1.0


def _read(folder: Path) -> dict[str, bytes]:
    """The bytes of every file that may be served, by its name below the folder. Raises OSError, _NotAPage."""
    found: dict[str, bytes] = {}
    size = 0
    for name, path in _names(folder):
        size += path.stat().st_size  # before it is read: it may be anything
        if len(found) >= MAX_FILES or size > MAX_BYTES:
            raise _NotAPage(f"more than {MAX_FILES} files or {MAX_BYTES} bytes, want what `npm run build` leaves")
        found[name] = path.read_bytes()
    return found


def _names(folder: Path) -> Iterator[tuple[str, Path]]:
    for encoding in ("", *ENCODINGS.values()):
        path = folder / f"{INDEX}{encoding}"
        if path.is_file():
            yield path.name, path
    assets = folder / ASSETS
    for path in sorted(assets.iterdir()) if assets.is_dir() else ():
        if stat.S_ISREG(path.stat().st_mode):
            yield f"{ASSETS}/{path.name}", path


def _files(read: Mapping[str, bytes]) -> dict[str, File]:
    """Files with their compressed copies; a copy without its file is one by itself."""
    copies = {name + suffix for name in read for suffix in ENCODINGS.values()}
    return {name: _file(name, read) for name in read if name not in copies}


def _file(name: str, read: Mapping[str, bytes]) -> File:
    there = {encoding: name + suffix for encoding, suffix in ENCODINGS.items() if name + suffix in read}
    bodies = {encoding: _body(encoding, read[each]) for encoding, each in (there | {IDENTITY: name}).items()}
    return File(TYPES.get(Path(name).suffix, OTHER_TYPE), bodies)


def _body(encoding: str, data: bytes) -> Body:
    return Body(encoding, data, f'"{hashlib.blake2b(data, digest_size=12).hexdigest()}"')
