"""Ports for Label Studio and the backend on this machine."""

import socket

from backend.label_studio.server import free_port


def test_a_port_that_is_bound_but_not_listened_on_is_replaced() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        taken = other.getsockname()[1]
        assert free_port(taken) not in (0, taken)
    assert free_port(taken) == taken
