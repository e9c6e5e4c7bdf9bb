"""Jobs name their functions by path, across rooms that do not import each other."""

from rq.utils import import_attribute

from backend.processes.queues import Handler


def test_every_handler_can_be_imported_and_called() -> None:
    assert all(callable(import_attribute(handler)) for handler in Handler)
