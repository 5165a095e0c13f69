"""The view that readers take, and every way in which it changes.

Owns the present View. A reader takes it once and reads nothing else that changes; whoever changes it puts a new one
in its place, whole, under `_lock`: the writer thread (heads, deletes), the sealer (a segment for a head), the
maintainer (segments for segments), and whoever finds a segment damaged. What is taken out of the view may still be
read by those who took it before: files stay readable through their open descriptors after they are unlinked.
"""

import threading
from collections.abc import Collection, Sequence

from workers.storage.deletes import Deletes
from workers.storage.head import Head
from workers.storage.page_cache import PageCache
from workers.storage.segment import Segment
from workers.storage.table import SegmentSet, View


class CurrentView:
    """Any thread reads `now`; changes are made by the methods alone. cache: of the segments' pages and tables."""

    def __init__(self, segments: Sequence[Segment], cache: PageCache, deletes: Deletes, head: Head) -> None:
        self._lock = threading.Lock()
        self._cache = cache
        self.now = View(SegmentSet(segments, cache), (head,), deletes)

    @property
    def head(self) -> Head:
        """The head that is being filled."""
        return self.now.heads[-1]

    def begin_head(self, fresh: Head, deletes: Deletes | None = None) -> Head:
        """Freeze the head: `fresh` takes its place, with other deletes where given. The frozen one."""
        with self._lock:
            view = self.now
            self.now = View(view.stored, (*view.heads, fresh), view.deletes if deletes is None else deletes)
            return view.heads[-1]

    def replace_head(self, fresh: Head, deletes: Deletes | None = None) -> None:
        """Put another head in the place of one without rows, with other deletes where given."""
        with self._lock:
            view = self.now
            fresh.take_cover(view.heads[-1])
            self.now = View(view.stored, (*view.heads[:-1], fresh), view.deletes if deletes is None else deletes)

    def put_deletes(self, deletes: Deletes) -> None:
        """Other deletes; the head's rows are not older than any of them."""
        with self._lock:
            self.now = View(self.now.stored, self.now.heads, deletes)

    def put_sealed(self, written: Segment, head: Head) -> None:
        """A segment for the head whose rows it holds."""
        with self._lock:
            view = self.now
            heads = tuple(each for each in view.heads if each is not head)
            self.now = View(SegmentSet([*view.stored.segments, written], self._cache), heads, view.deletes)

    def put_segments(self, gone: Collection[int], written: Sequence[Segment] = ()) -> list[Segment]:
        """Segments for those of the numbers `gone`; the ones that went, fewer when others took them out before."""
        with self._lock:
            view = self.now
            left = [each for each in view.stored.segments if each.number not in gone]
            went = [each for each in view.stored.segments if each.number in gone]
            self.now = View(SegmentSet([*left, *written], self._cache), view.heads, view.deletes)
            return went
