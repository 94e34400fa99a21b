"""Which tab draws on which image: one at a time, and the others are told."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

SECONDS = 15.0
"""How long a tab keeps an image without a sign of life. Browsers slow down the timers of tabs that nobody looks at."""


@dataclass
class _Lease:
    tab: str
    seen: float


class Leases:
    """Leases of images to tabs; they end by themselves.

    Args:
        clock: seconds, for tests.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._held: dict[int, _Lease] = {}

    def claim(self, index: int, tab: str, *, take: bool = False) -> bool:
        """Whether ``tab`` may draw on an image: nobody else does, or it ``take``s it from them."""
        with self._lock:
            now = self._clock()
            lease = self._held.get(index)
            if lease is not None and lease.tab != tab and now - lease.seen < SECONDS and not take:
                return False
            self._held[index] = _Lease(tab, now)
            return True

    def release(self, index: int, tab: str) -> None:
        """Give an image up, if it is this tab's."""
        with self._lock:
            if index in self._held and self._held[index].tab == tab:
                del self._held[index]
