"""An HTTP server of a test's own, in a thread, on a free port of the loopback address."""

import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Handler(BaseHTTPRequestHandler):
    """Answers requests of all methods in `answer`, and writes no log."""

    def answer(self) -> None:
        """Read the request and `send` something."""
        raise NotImplementedError

    def do_GET(self) -> None:
        self.answer()

    def do_HEAD(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def do_PATCH(self) -> None:
        self.answer()

    def send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        """A whole answer; `Content-Length` is the body's unless `headers` say something else."""
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


class HttpServer:
    """Answers with `handler` from the beginning until `close`; also a context manager.

    Attributes:
        port: the port it listens on.
        url: its address, without a slash at the end.
    """

    def __init__(self, handler: type[Handler]) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        # Clients keep connections open; waiting for their threads would wait for ever.
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        """Stop listening; does nothing the second time."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()

    def __enter__(self) -> "HttpServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


Answer = tuple[int, dict[str, str], bytes]


class Site:
    """A web server on the loopback address: paths to answers, and what was asked of it.

    An answer that is a function is handed the open request. `pause_s` has the body repeated until
    the reader hangs up.
    """

    def __init__(self) -> None:
        self.answers: dict[str, Answer | Callable[[Handler], None]] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.pause_s: float | None = None
        site = self

        class SiteHandler(Handler):
            def answer(self) -> None:
                site.requests.append((self.path, {k.lower(): v for k, v in self.headers.items()}))
                answer = site.answers.get(self.path.partition("?")[0], (404, {}, b""))
                if callable(answer):
                    answer(self)
                    return
                self.send(*answer)
                while site.pause_s is not None:
                    time.sleep(site.pause_s)
                    try:
                        self.wfile.write(answer[2])
                    except OSError:
                        break

        self._server = HttpServer(SiteHandler)
        self.port, self.url = self._server.port, self._server.url
        self.close = self._server.close
