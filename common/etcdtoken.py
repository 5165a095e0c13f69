"""The token of a user of etcd: one authentication at a time, by a thread that outlives those who wait for it.

etcd looks at a password by bcrypt: a tenth of a second of CPU, several on a small machine, also when whoever asked has
gone. Were each call to authenticate within its own timeout, many workers that begin at once would give up and ask again
for ever: all that etcd gets done is for those who have gone. So what was begun is waited for, whoever needed it, and
who asks in vain has more patience next time. Workers begin with different members.

Knows nothing of HTTP. Any thread.
"""

import random
import threading
from collections.abc import Callable
from typing import Final

PATIENCE_S: Final = 20.0  # for one answer, at most


class Slow(TimeoutError):
    """A member did not answer in time, and may be at it still."""


class Tokens:
    """ask: authenticates at a member (its index) within so many seconds; raises Slow, or one of `away` where another
    member is worth asking. first_s: for the first answer.
    """

    def __init__(
        self,
        ask: Callable[[int, float], str],
        members: int,
        first_s: float,
        away: tuple[type[Exception], ...],
    ) -> None:
        self._ask = ask
        self._members = members
        self._first_s = first_s
        self._passed_over: tuple[type[Exception], ...] = (Slow, *away)
        self._changed = threading.Condition()
        self._token = ""
        self._error: Exception | None = None
        self._failures: dict[int, Exception] = {}  # by member, of the authentication under way
        self._is_asking = False

    def get(self, within_s: float, at: int = 0) -> str:
        """The token. Raises what `ask` raised last; where it takes longer, what it did for member `at`, TimeoutError
        where that has not said anything yet.
        """
        with self._changed:
            if not self._token and not self._is_asking:
                self._is_asking = True
                self._failures.clear()
                threading.Thread(target=self._run, name="etcd-token", daemon=True).start()
            self._changed.wait_for(lambda: self._token or not self._is_asking, within_s)
            if self._token:
                return self._token
            if self._error is None or self._is_asking:
                raise self._failures.get(at) or TimeoutError("has not let the user in yet: it is slow with passwords")
            raise self._error

    def drop(self, token: str) -> None:
        """A member does not know this token any more."""
        with self._changed:
            if token == self._token:
                self._token = ""

    def _run(self) -> None:
        token, failure = "", None
        try:
            token = self._asked()
        except Exception as error:  # raised to those who wait
            failure = error
        with self._changed:
            self._token, self._error, self._is_asking = token, failure, False
            self._changed.notify_all()

    def _asked(self) -> str:
        first, patience_s = random.randrange(self._members), self._first_s
        while True:
            failures: list[Exception] = []
            for step in range(self._members):
                try:
                    return self._ask((first + step) % self._members, patience_s)
                except self._passed_over as error:
                    failures.append(error)
                    self._failures[(first + step) % self._members] = error
            if patience_s >= PATIENCE_S or not any(isinstance(each, Slow) for each in failures):
                raise failures[-1]
            patience_s = min(2 * patience_s, PATIENCE_S)
