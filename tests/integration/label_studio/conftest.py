"""Web servers on the loopback address, one of which stands where Label Studio would."""

from collections.abc import Callable, Iterator

import pytest

from backend.label_studio.client import LabelStudio
from tests.support.http_server import Site
from tests.support.tokens import LEGACY_TOKEN


@pytest.fixture
def make_site() -> Iterator[Callable[[], Site]]:
    sites: list[Site] = []

    def make() -> Site:
        sites.append(Site())
        return sites[-1]

    yield make
    for site in sites:
        site.close()


@pytest.fixture
def studio(make_site: Callable[[], Site]) -> Site:
    """Answers as Label Studio does, where its own server cannot be brought to."""
    return make_site()


@pytest.fixture
def web(make_site: Callable[[], Site]) -> Site:
    return make_site()


@pytest.fixture
def client(studio: Site) -> Iterator[LabelStudio]:
    with LabelStudio(studio.url, LEGACY_TOKEN, attempts=1) as client:
        yield client
