"""An S3 server of a test's own."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from moto.server import ThreadedMotoServer


@contextmanager
def s3_server() -> Iterator[str]:
    """The address of an empty S3 server, which runs while the block does."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()


@contextmanager
def s3_at(url: str) -> Iterator[None]:
    """Addresses of S3 lead to the server at `url` while the block runs, and to none after it.

    fsspec keeps its connections by their arguments, among which the environment's address is
    not: without being told, it would go on to ask the server of an earlier test.
    """
    from s3fs import S3FileSystem

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", url)
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        S3FileSystem.clear_instance_cache()
        try:
            yield
        finally:
            S3FileSystem.clear_instance_cache()


@contextmanager
def s3_bucket(name: str) -> Iterator[str]:
    """The URL of an empty bucket on a server of its own, to which addresses of S3 lead."""
    from s3fs import S3FileSystem

    with s3_server() as url, s3_at(url):
        S3FileSystem(skip_instance_cache=True).mkdir(name)
        yield f"s3://{name}"
