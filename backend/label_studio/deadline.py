"""One end for everything that a fetch does: names, connections, headers, redirects, the body.

The time-outs of an HTTP client begin anew with every byte, so a server that sends one byte now and
then holds its caller for as long as it likes.
"""

import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from backend.errors import ImageUnavailableError


class Deadline:
    """Cuts the connections of a fetch when its time is over; a context manager.

    Args:
        seconds: from the beginning of the block.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> "Deadline":
        self._ends = time.monotonic() + self._seconds
        self._timer = threading.Timer(self._seconds, self._cut)
        self._timer.daemon = True
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        with self._lock:
            for connection in self._sockets:
                connection.close()
            self._sockets.clear()

    @property
    def is_over(self) -> bool:
        """Whether the time is over."""
        return time.monotonic() >= self._ends

    def remaining_s(self) -> float:
        """Seconds that are left.

        Raises:
            ImageUnavailableError: none.
        """
        if self.is_over:
            raise ImageUnavailableError("it took longer than MEDSAM3_IMAGE_TIMEOUT_S allows")
        return self._ends - time.monotonic()

    @property
    def extensions(self) -> Mapping[str, Any]:
        """For a request of httpx2: what makes its connection one that is cut."""
        return {"trace": self._watch}

    def _watch(self, event: str, info: Mapping[str, Any]) -> None:
        if not event.endswith("connect_tcp.complete"):
            return
        # A duplicate: TLS takes the socket itself over, and shutting one down ends both.
        connection = info["return_value"].get_extra_info("socket").dup()
        with self._lock:
            self._sockets.append(connection)
        if self.is_over:
            self._cut()

    def _cut(self) -> None:
        with self._lock:
            for connection in self._sockets:
                with suppress(OSError):  # The other side was quicker.
                    connection.shutdown(socket.SHUT_RDWR)
