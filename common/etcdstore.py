"""The ring store in etcd, for clusters of several hosts. Each call is answered anew and may take its timeout.

Keys under the prefix of the store's URL, values as bytes:

    ring                        "<epoch> <hash> <drawn>": names the ring in force; the third tells two saves apart
    epochs/<epoch, 20 digits>   msgpack {saved_at_s, document (zlib)}: that ring and the HISTORY before it
    marks/<node>/<by>           "1", or "" where it was removed
    stores/<node>               the store id that the node claimed last
    driver                      who drives moves

A save is one transaction: if `ring` has the revision and the value that were looked at, put `ring` and its document.
The document is never changed, so whoever reads `ring` and then the document gets what belongs together.

A request whose answer did not come in time may still be carried out, and later than one that was sent after it. So each
write compares the revision that was looked at before: of two tries one counts, and a late one changes nothing. Marks
are emptied and not removed for the same reason: a removed key has revision 0 again, and a late first put would bring
back the mark of a spool that has long been drained; nobody would take that away.

Any thread and process.
"""

import secrets
import zlib
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from threading import Event, Thread
from typing import Any, Final, NamedTuple

import msgspec

from common import clock, config, log, private, ringstore
from common.errors import ConfigError, RingConflictError, RingError, RingStoreError
from common.etcdclient import EtcdClient, Tls, User, decoded, encoded
from common.ring import Ring
from common.ringrules import check_follows
from common.ringstore import Mark, Past, RingStore

MARK_TIMEOUT_S: Final = 1.0  # at most: the loop of a bridge waits for its marks
TRIES: Final = 5  # of a write whose key others write, too
REWATCH_S: Final = 1.0  # before a watch that ended by an error, or at once, is begun again
NS_PER_S: Final = 1e9

logger = log.get("ring.etcd")


class _Saved(msgspec.Struct, frozen=True):
    saved_at_s: float
    document: bytes


class _Value(NamedTuple):
    """What a key holds; revision 0 and b"" where there is none."""

    revision: int
    data: bytes


_NOTHING: Final = _Value(0, b"")


class Look(NamedTuple):
    """Ring and marks of one moment. epoch: of the ring, 0 where there is none."""

    stamp: Hashable
    epoch: int
    marks: frozenset[Mark]


def open_etcd(url: str, settings: config.Settings) -> "EtcdStore":
    """The store of a URL etcd://HOST:PORT[,HOST:PORT...]/PREFIX. Raises ConfigError. Asks nobody yet."""
    parts = config.etcd_parts(url)
    if parts is None:
        raise ConfigError(f"cluster.ring_store = {url!r}: want {ringstore.STORE_WANTED}")
    cluster, path = settings.cluster, settings.path
    tls = user = None
    if cluster.etcd_ca_file:
        own = [path(file) if file else None for file in (cluster.etcd_cert_file, cluster.etcd_key_file)]
        tls = Tls(path(cluster.etcd_ca_file), *own)
        for setting, file in zip(("etcd_ca_file", "etcd_cert_file", "etcd_key_file"), tls, strict=True):
            _check_readable(setting, file)
    if cluster.etcd_username:
        text = private.read(path(cluster.etcd_password_file), "cluster.etcd_password_file")
        user = User(cluster.etcd_username, text.rstrip("\r\n"))
    endpoints, prefix = parts
    return EtcdStore(url, EtcdClient(endpoints, cluster.etcd_timeout_s, tls, user), prefix)


def _check_readable(setting: str, file: Any) -> None:
    try:
        if file is not None:
            file.open("rb").close()
    except OSError as error:
        raise ConfigError(f"cluster.{setting}: cannot read {file}: {error.strerror}") from error


class EtcdStore:
    """Constant after construction. close: ends the threads of its watches, for tests."""

    remote = True

    def __init__(self, url: str, client: EtcdClient, prefix: str) -> None:
        """prefix: of all keys, without slash at its end."""
        self._url = url
        self._client = client
        self._prefix = prefix.encode() + b"/"
        self._closed = Event()

    @property
    def url(self) -> str:
        return self._url

    @property
    def direct(self) -> RingStore:
        return self

    # The ring

    def load(self) -> Ring | None:
        for _ in range(TRIES):
            found = self._get(b"ring")
            if not found.data:
                return None
            epoch, ring_hash = self._named(found)
            kept = self._get(_epoch_key(epoch))
            if kept.data:
                return self._ring(kept.data, epoch, ring_hash)
        raise RingError(f"{self._url}: {_text(self._prefix)}ring names epoch {epoch}, whose document is not there")

    def save(self, ring: Ring, expected_epoch: int) -> None:
        ring.validate()
        found = self._get(b"ring")
        check_follows(ring, self.load() if found.data else None, expected_epoch, self._url)
        self._replace(ring, found)

    def restore(self, ring: Ring, stamp: Hashable) -> None:
        ring.validate()
        found = self._get(b"ring")
        if _stamp(found) != stamp:
            raise RingConflictError(f"{self._url} has changed: another writer was first, look at it again")
        self._replace(ring, found)

    def stamp(self) -> Hashable:
        return _stamp(self._get(b"ring"))

    def look(self) -> Look:
        """Ring and marks of one moment, without the document. Raises RingError, RingStoreError."""
        ring, marks = self._read([self._range(b"ring"), self._range_under(b"marks/")])
        found = next((value for _, value in ring), _NOTHING)
        epoch = self._named(found)[0] if found.data else 0
        return Look(_stamp(found), epoch, _marks(marks))

    def history(self) -> list[Past]:
        (found,) = self._read([self._range_under(b"epochs/")])
        newest = self._newest()
        saved = [(int(key.rpartition(b"/")[2]), value.data) for key, value in found]
        return [Past(epoch, self._unpack(data).saved_at_s, len(data)) for epoch, data in saved if epoch <= newest]

    def past(self, epoch: int) -> Ring:
        kept = self._get(_epoch_key(epoch))
        if not kept.data:
            raise RingError(f"no ring of epoch {epoch} in {self._url}, see: ringctl history")
        return self._ring(kept.data, epoch, None)

    def _newest(self) -> int:
        found = self._get(b"ring")
        return self._named(found)[0] if found.data else 0

    def _replace(self, ring: Ring, found: _Value) -> None:
        """Put a ring in force if the key still holds what was found.

        The answer to a first try may be lost and a second one fail because of it: what was drawn tells.
        """
        value = f"{ring.epoch} {ring.hash} {secrets.token_hex(8)}".encode()
        saved = _Saved(clock.wall_ns() / NS_PER_S, zlib.compress(ring.dumps()))
        puts = [(b"ring", value), (_epoch_key(ring.epoch), msgspec.msgpack.encode(saved))]
        done, now = self._swap(b"ring", found, puts, self._too_old())
        if not done and now.data != value:
            raise RingConflictError(f"{self._url} has changed: another writer was first, look at it again")

    def _too_old(self) -> list[bytes]:
        """Documents that the history has no room for when there is one more."""
        (found,) = self._read([self._range_under(b"epochs/") | {"keys_only": True}])
        return [key for key, _ in found][: -(ringstore.HISTORY - 1)]

    def _named(self, found: _Value) -> tuple[int, str]:
        """Epoch and hash of the ring that is in force. Raises RingError."""
        parts = found.data.split()
        if len(parts) != 3 or not parts[0].isdigit():
            raise RingError(f"{self._url}: {_text(self._prefix)}ring holds {found.data[:50]!r}, want epoch, hash, draw")
        return int(parts[0]), _text(parts[1])

    def _ring(self, data: bytes, epoch: int, ring_hash: str | None) -> Ring:
        where = f"{self._url}: {_text(self._prefix + _epoch_key(epoch))}"
        try:
            ring = Ring.loads(zlib.decompress(self._unpack(data).document))
        except zlib.error as error:
            raise RingError(f"{where} is damaged: {error}") from error
        except RingError as error:
            raise RingError(f"{where}: {error}") from error
        if ring.epoch != epoch or ring_hash not in (None, ring.hash):
            raise RingError(f"{where} has epoch {ring.epoch} and hash {ring.hash}, want {epoch} and {ring_hash}")
        return ring

    def _unpack(self, data: bytes) -> _Saved:
        try:
            return msgspec.msgpack.decode(data, type=_Saved)
        except msgspec.MsgspecError as error:
            raise RingError(f"{self._url}: a document of the history is damaged: {error}") from error

    # Marks

    def marks(self) -> frozenset[Mark]:
        (found,) = self._read([self._range_under(b"marks/")])
        return _marks(found)

    def put_mark(self, mark: Mark) -> None:
        # Put anew where it is there already: a removal that is still on its way then finds another revision.
        self._set(_mark_key(mark), b"1", min(MARK_TIMEOUT_S, self._client.timeout_s))

    def remove_mark(self, mark: Mark) -> None:
        key, timeout_s = _mark_key(mark), min(MARK_TIMEOUT_S, self._client.timeout_s)
        if self._get(key, timeout_s).data:
            self._set(key, b"", timeout_s)

    # Store ids, who drives

    def store_ids(self) -> dict[str, str]:
        (found,) = self._read([self._range_under(b"stores/")])
        return {_text(key.rpartition(b"/")[2]): _text(value.data) for key, value in found}

    def claim(self, node: str, store_id: str) -> str | None:
        before = self._set(b"stores/" + node.encode(), store_id.encode())
        return _text(before) if before else None

    def driver(self) -> str:
        return _text(self._get(b"driver").data)

    def note_driver(self, text: str) -> None:
        self._set(b"driver", text.encode())

    # Following

    def watch(self, changed: Callable[[], None]) -> None:
        Thread(target=self._watch, args=(changed,), name="etcd-watch", daemon=True).start()

    def hurry(self) -> None:
        pass  # each call is answered anew

    def as_of_s(self) -> float:
        return clock.monotonic_s()

    def close(self) -> None:
        """End the watches, within a few seconds."""
        self._closed.set()

    def _watch(self, changed: Callable[[], None]) -> None:
        """Tell of each change of ring or marks. What may have been missed between two watches counts as one."""
        first, end = self._prefix + b"marks/", self._prefix + b"ring\0"
        while not self._closed.is_set():
            begun_s = clock.monotonic_s()
            try:
                for _ in self._client.watch(first, end):
                    changed()
                    if self._closed.is_set():
                        return
            except RingStoreError as error:
                logger.debug("watch ended", detail=str(error))
                changed()
                begun_s = clock.monotonic_s()
            self._closed.wait(max(0.0, begun_s + REWATCH_S - clock.monotonic_s()))

    # Keys

    def _range(self, key: bytes) -> dict[str, Any]:
        return {"key": encoded(self._prefix + key)}

    def _range_under(self, folder: bytes) -> dict[str, Any]:
        """All keys of a folder, whose name ends with a slash, ascending."""
        begin = self._prefix + folder
        return {"key": encoded(begin), "range_end": encoded(begin[:-1] + b"0")}  # "0" comes after "/"

    def _get(self, key: bytes, timeout_s: float | None = None) -> _Value:
        ((found),) = self._read([self._range(key)], timeout_s)
        return next((value for _, value in found), _NOTHING)

    def _read(
        self, ranges: Sequence[dict[str, Any]], timeout_s: float | None = None
    ) -> list[list[tuple[bytes, _Value]]]:
        """Keys, without the prefix, and values of several ranges at one moment. Raises RingStoreError."""
        wanted = [{"request_range": each} for each in ranges]
        answer = self._client.call("/kv/txn", {"compare": [], "success": wanted, "failure": []}, timeout_s)
        return [self._values(each) for each in _responses(answer, len(ranges))]

    def _values(self, response: Mapping[str, Any]) -> list[tuple[bytes, _Value]]:
        try:
            kvs = response["response_range"].get("kvs", [])
            found = [(decoded(kv["key"]), int(kv["mod_revision"]), decoded(kv.get("value", ""))) for kv in kvs]
        except (KeyError, AttributeError, TypeError, ValueError, msgspec.ValidationError) as error:
            raise _garbled(error) from error
        return [(key.removeprefix(self._prefix), _Value(revision, data)) for key, revision, data in found]

    def _set(self, key: bytes, data: bytes, timeout_s: float | None = None) -> bytes:
        """Give a key a value and another revision; the value before. Raises RingStoreError."""
        found = self._get(key, timeout_s)
        for _ in range(TRIES):
            done, now = self._swap(key, found, [(key, data)], (), timeout_s)
            if done or now.data == data:  # a first try was carried out, and its answer lost
                return found.data
            found = now
        raise RingConflictError(f"{self._url}: others write {_text(self._prefix + key)} all the time")

    def _swap(
        self,
        key: bytes,
        found: _Value,
        puts: Iterable[tuple[bytes, bytes]],
        removed: Iterable[bytes],
        timeout_s: float | None = None,
    ) -> tuple[bool, _Value]:
        """Write several keys if one still holds what was found in it: whether it did, and what it holds else."""
        place = {"key": encoded(self._prefix + key), "result": "EQUAL"}
        compare = [place | {"target": "MOD", "mod_revision": str(found.revision)}]
        if found.revision:  # an etcd that was put back may give the same revision to something else
            compare.append(place | {"target": "VALUE", "value": encoded(found.data)})
        success = [_put(self._prefix + name, data) for name, data in puts]
        success += [{"request_delete_range": {"key": encoded(self._prefix + name)}} for name in removed]
        wanted = {"compare": compare, "success": success, "failure": [{"request_range": self._range(key)}]}
        answer = self._client.call("/kv/txn", wanted, timeout_s)
        if answer.get("succeeded"):
            return True, found
        ((now),) = [self._values(each) for each in _responses(answer, 1)]
        return False, next((value for _, value in now), _NOTHING)


def _put(key: bytes, data: bytes) -> dict[str, Any]:
    return {"request_put": {"key": encoded(key), "value": encoded(data)}}


def _stamp(found: _Value) -> Hashable:
    return (found.revision, found.data) if found.data else None


def _epoch_key(epoch: int) -> bytes:
    return b"epochs/%020d" % epoch


def _mark_key(mark: Mark) -> bytes:
    return f"marks/{mark.node}/{mark.by}".encode()


def _marks(found: Iterable[tuple[bytes, _Value]]) -> frozenset[Mark]:
    names = [_text(key).split("/")[1:] for key, value in found if value.data]
    return frozenset(Mark(*name) for name in names if len(name) == 2)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _responses(answer: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    responses = answer.get("responses", [])
    if not isinstance(responses, list) or len(responses) != count:
        raise _garbled(f"{len(responses)} responses, want {count}")
    return responses


def _garbled(why: object) -> RingStoreError:
    return RingStoreError(f"etcd: an answer that is not understood ({why}): is it etcd 3.4 or newer?")
