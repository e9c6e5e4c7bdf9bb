"""Callers without credentials that send slowly, or nothing, against the real web process."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import httpx2
import pytest

from tests.support.processes import Running, running

# Longer than the process takes to hand a request to a thread, if it did.
HOLD_S = 1.0
HELD = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
BEGINNINGS = {
    "nothing": b"",
    "half a head": b"GET /health HTTP/1.1\r\nHost: x\r\nX-Part: ",
    "a head without its end": HELD + b"Content-Length: 10\r\n",
    "a head, and no body": HELD + b"Content-Length: 100000\r\n\r\n{",
    "a head, and half a chunk": HELD + b"Transfer-Encoding: chunked\r\n\r\nff\r\n{",
    "a body that nobody reads": b"GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n\r\n",
    "a request, and half of another": b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /hea",
    "an endless head": b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 20_000,
}


@pytest.fixture(scope="module")
def web() -> Iterator[Running]:
    """The web process with as few threads as a machine may have, and their limits."""
    with running(with_worker=False) as processes:
        yield processes


@contextmanager
def held(port: int, beginning: bytes, count: int) -> Iterator[None]:
    """Hold connections open, with a byte now and then, so that none of them is ever silent."""
    over = threading.Event()
    with ExitStack() as stack:
        callers = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(count)
        ]

        def drip() -> None:
            while True:
                for caller in callers:
                    with suppress(OSError):
                        caller.send(b"x")
                if over.wait(0.2):
                    return

        for caller in callers:
            with suppress(OSError):
                caller.sendall(beginning)
        thread = threading.Thread(target=drip)
        thread.start()
        time.sleep(HOLD_S)
        try:
            yield
        finally:
            over.set()
            thread.join()


@pytest.mark.parametrize("beginning", BEGINNINGS.values(), ids=BEGINNINGS.keys())
def test_slow_strangers_do_not_keep_anybody_waiting(web: Running, beginning: bytes) -> None:
    port = int(web.url.rpartition(":")[2])
    with held(port, beginning, 2 * web.services.settings.web_threads):
        for _ in range(5):
            with httpx2.Client(base_url=web.url, auth=web.client.auth, timeout=30) as client:
                assert client.get("/versions").status_code == 200
                body = {"tasks": [], "project": "7.1"}
                assert client.post("/predict", json=body).json() == {"results": []}


def test_more_connections_than_there_is_room_for_make_room(web: Running) -> None:
    port = int(web.url.rpartition(":")[2])
    with held(port, b"GET /health HTTP/1.1\r\n", 800):
        assert httpx2.get(f"{web.url}/health", timeout=30).status_code == 200


def test_a_head_in_pieces_and_a_refused_body_are_answered(web: Running) -> None:
    port = int(web.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=30) as caller:
        for piece in (b"GET /health HTTP/1.1\r\nHo", b"st: x\r\n\r", b"\n"):
            caller.sendall(piece)
            time.sleep(0.2)
        assert caller.recv(4096).startswith(b"HTTP/1.1 200")
    # The answer comes before the body is sent: it must arrive nevertheless.
    refused = httpx2.post(f"{web.url}/predict", content=b" " * 20_000_000, timeout=30)
    assert refused.status_code == 401
