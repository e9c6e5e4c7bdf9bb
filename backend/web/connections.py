"""Connections of the web process: a thread is given to a request whose head has arrived whole.

Gunicorn's own threads read heads themselves, byte by byte if the caller likes, so that as many
slow callers as there are threads stop everything, and they need no credentials for that.
"""

import selectors
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from gunicorn.http import get_parser
from gunicorn.util import close
from gunicorn.workers.gthread import TConn, ThreadWorker

# Callers send a head in one piece; this is for bad networks.
HEAD_S = 10.0
LARGEST_HEAD = 64 * 1024
# What a caller may still be sending is thrown away for this long, so that it reads its answer.
LINGER_S = 2.0
# A body or an answer that stands still for this long ends its connection.
SILENCE_S = 30
# Beside the threads: connections that wait for a head or between two requests.
MOST_WAITING = 512


class Connection(TConn):  # type: ignore[misc]
    """A connection that is closed without anybody waiting for the caller."""

    def __init__(self, *arguments: Any, linger: Callable[["Connection"], None]) -> None:
        super().__init__(*arguments)
        self.parser = get_parser(self.cfg, self.sock, self.client)
        self.head = bytearray()
        self.answered = False
        self._linger = linger
        limit = struct.pack("ll", SILENCE_S, 0)
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            self.sock.setsockopt(socket.SOL_SOCKET, option, limit)

    def close(self, graceful: bool = False) -> None:
        """Close at once, or (`graceful`) once the caller has, which must not take long."""
        if graceful:
            with suppress(OSError):
                self.sock.shutdown(socket.SHUT_WR)
                self._linger(self)
                return
        close(self.sock)


class HeadFirstWorker(ThreadWorker):  # type: ignore[misc]
    """Gunicorn's worker with threads, whose main loop collects the heads of requests."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        # In the order of their arrival, so that the first is the next to run out of time.
        self._arriving: dict[Connection, None] = {}
        self._leaving: dict[Connection, None] = {}

    def accept(self, listener: socket.socket) -> None:
        """Take a connection in; where there are too many, another one goes."""
        try:
            client, address = listener.accept()
        except OSError:
            # Gone again, or out of file descriptors: whoever waits longest makes room.
            self._make_room()
            return
        self.nr_conns += 1
        connection = Connection(
            self.cfg, client, address, listener.getsockname(), linger=self._wait_for_the_end
        )
        self._wait_for_head(connection)
        if self.nr_conns >= self.worker_connections - 1:
            self._make_room()

    def on_client_socket_readable(self, conn: Connection, client: socket.socket) -> None:
        """The next request on a connection that was kept."""
        if conn not in self.keepalived_conns:
            return  # closed by what came in before, in the same turn of the loop
        self.poller.unregister(client)
        self.keepalived_conns.remove(conn)
        self._wait_for_head(conn)

    def murder_pending(self) -> None:
        """Drop the connections whose time is over; gunicorn calls this every second."""
        super().murder_pending()
        for waiting in (self._arriving, self._leaving):
            while waiting and next(iter(waiting)).timeout < time.monotonic():
                self._drop(next(iter(waiting)))

    def _wait_for_head(self, conn: Connection) -> None:
        self._watch(conn, self._arriving, HEAD_S, self._read_head)

    def _wait_for_the_end(self, conn: Connection) -> None:
        conn.answered = True
        self.nr_conns += 1
        self._watch(conn, self._leaving, LINGER_S, self._discard)

    def _watch(
        self,
        conn: Connection,
        waiting: dict[Connection, None],
        limit_s: float,
        readable: Callable[[Connection, socket.socket], None],
    ) -> None:
        conn.sock.setblocking(False)
        conn.timeout = time.monotonic() + limit_s
        waiting[conn] = None
        self.poller.register(conn.sock, selectors.EVENT_READ, partial(readable, conn))

    def _read_head(self, conn: Connection, client: socket.socket) -> None:
        received = _received(client) if conn in self._arriving else None
        if received is None:
            return
        conn.head += received
        # A pair of line ends may lie across two pieces; heads are small, so all is searched.
        if b"\r\n\r\n" in conn.head:
            self.poller.unregister(client)
            del self._arriving[conn]
            conn.parser.unreader.unread(bytes(conn.head))
            conn.head.clear()
            conn.data_ready = True
            self.enqueue_req(conn)
        elif not received or len(conn.head) > LARGEST_HEAD:
            self._drop(conn)

    def _discard(self, conn: Connection, client: socket.socket) -> None:
        if conn in self._leaving and _received(client) == b"":
            self._drop(conn)

    def _drop(self, conn: Connection) -> None:
        self.poller.unregister(conn.sock)
        (self._leaving if conn.answered else self._arriving).pop(conn)
        self.nr_conns -= 1
        conn.close()

    def _make_room(self) -> None:
        """Close the connection that has waited longest, of the kind of which there are most."""
        waiting = max(self._leaving, self._arriving, key=len)
        if len(waiting) >= len(self.keepalived_conns):
            if waiting:
                self._drop(next(iter(waiting)))
            return
        conn = self.keepalived_conns.popleft()
        self.poller.unregister(conn.sock)
        self.nr_conns -= 1
        conn.close()

    def _keepalive_after(self, conn: Connection, keepalive: bool) -> bool:
        # Gunicorn would hold the thread for seconds, waiting for a body that nobody reads, and give
        # another to what came behind the request, whole or not.
        drained = keepalive and conn.parser.finish_body(deadline=time.monotonic() + 0.05)
        return bool(drained) and not conn.parser.unreader.buf.getvalue()


def _received(client: socket.socket) -> bytes | None:
    """What has arrived: nothing at the end of the connection, None where it was a false alarm."""
    try:
        return client.recv(LARGEST_HEAD)
    except BlockingIOError:
        return None
    except OSError:
        return b""
