"""The cache of decoded index pages, shared by all segments of a store.

Owns the pages and how many bytes of them there are; knows nothing of what they mean. Any thread: `_lock` guards
everything here, and is not held while a page is decoded, so two threads may decode the same one.
"""

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TypeVar, cast

import numpy as np

Page = TypeVar("Page", bound=tuple[object, ...])

_ENTRY_BYTES = 1024  # of an entry besides the numbers in its arrays


class PageCache:
    """Tuples of arrays by key, those least recently used dropped when they are more than `max_bytes`."""

    def __init__(self, max_bytes: int) -> None:
        self.bytes = 0
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        self._pages: OrderedDict[Hashable, tuple[object, ...]] = OrderedDict()
        self._owners = itertools.count()

    def new_owner(self) -> int:
        """A number to begin keys with that nobody else has."""
        return next(self._owners)

    def find(self, key: Hashable) -> tuple[object, ...] | None:
        """What is kept under a key, or None."""
        with self._lock:
            found = self._pages.get(key)
            if found is not None:
                self._pages.move_to_end(key)
            return found

    def get(self, key: Hashable, make: Callable[[], Page]) -> Page:
        """What is kept under a key; made, and kept, when it is not there. Errors of `make` pass through."""
        found = self.find(key)
        if found is not None:
            return cast(Page, found)
        made = make()
        self._put(key, made)
        return made

    def _put(self, key: Hashable, page: tuple[object, ...]) -> None:
        with self._lock:
            replaced = self._pages.pop(key, None)
            self._pages[key] = page
            self.bytes += _size(key, page) - (_size(key, replaced) if replaced is not None else 0)
            while self.bytes > self.max_bytes and self._pages:
                self.bytes -= _size(*self._pages.popitem(last=False))


def _size(key: Hashable, page: tuple[object, ...]) -> int:
    """The ids of many series, in the key of a table, can be more than what is kept under it."""
    named = sum(len(each) for each in key if isinstance(each, bytes)) if isinstance(key, tuple) else 0
    return _ENTRY_BYTES + named + sum(each.nbytes for each in page if isinstance(each, np.ndarray))
