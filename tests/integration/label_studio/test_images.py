"""Where images may come from, and what must never leave: against real HTTP servers."""

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest

from backend.errors import ImageSourceError, LabelStudioAuthError, LabelStudioUnavailableError
from backend.label_studio.client import LabelStudio
from backend.label_studio.hosts import ImageHosts
from backend.label_studio.images import FetchedImages, fetch_image
from backend.label_studio.server import free_port
from backend.settings import Settings
from tests.support.http_server import Answer, Site
from tests.support.tokens import LEGACY_TOKEN

IMAGE = b"\x89PNG\r\n\x1a\n" + bytes(range(256))


def settings(**fields: Any) -> Settings:
    return Settings(_env_file=None, **fields)


def redirect(url: str) -> Answer:
    return 303, {"Location": url}, b""


def test_an_upload_is_fetched_with_the_token(studio: Site, client: LabelStudio) -> None:
    studio.answers["/data/upload/1/a.png"] = (200, {"Content-Type": "image/png"}, IMAGE)
    assert fetch_image("/data/upload/1/a.png", client=client, settings=settings()) == IMAGE
    assert fetch_image(f"{studio.url}/data/upload/1/a.png", client=client, settings=settings())
    assert [headers["authorization"] for _, headers in studio.requests] == [
        f"Token {LEGACY_TOKEN}"
    ] * 2


def test_a_label_studio_below_a_path_is_not_asked_twice_for_it(studio: Site) -> None:
    studio.answers["/labels/data/upload/1/a.png"] = (200, {}, IMAGE)
    with LabelStudio(f"{studio.url}/labels", LEGACY_TOKEN) as client:
        for reference in ("/labels/data/upload/1/a.png", "/data/upload/1/a.png"):
            assert fetch_image(reference, client=client, settings=settings()) == IMAGE


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (500, b"{}", "the uploaded file is missing"),
        (404, b"", "the uploaded file is missing"),
        (403, b"", "answered 403"),
        (200, b"", "the file is empty"),
    ],
)
def test_an_upload_that_is_not_there(
    studio: Site, client: LabelStudio, status: int, body: bytes, message: str
) -> None:
    studio.answers["/data/upload/1/a.png"] = (status, {}, body)
    with pytest.raises(ImageSourceError, match=rf"/data/upload/1/a\.png was not read: .*{message}"):
        fetch_image("/data/upload/1/a.png", client=client, settings=settings())


def test_a_refused_token_and_an_absent_label_studio_are_told_apart(
    studio: Site, client: LabelStudio
) -> None:
    studio.answers["/data/upload/1/a.png"] = (401, {}, b'{"detail": "Invalid token."}')
    with pytest.raises(LabelStudioAuthError, match="Invalid token") as caught:
        fetch_image("/data/upload/1/a.png", client=client, settings=settings())
    assert LEGACY_TOKEN not in str(caught.value)
    studio.answers["/data/upload/1/a.png"] = redirect("/user/login/?next=/data/upload/1/a.png")
    with pytest.raises(LabelStudioAuthError, match="log in"):
        fetch_image("/data/upload/1/a.png", client=client, settings=settings())
    studio.answers["/data/upload/1/a.png"] = (503, {}, b"")
    with pytest.raises(LabelStudioUnavailableError):
        fetch_image("/data/upload/1/a.png", client=client, settings=settings())
    with (
        LabelStudio(f"http://127.0.0.1:{free_port()}", LEGACY_TOKEN, attempts=1) as nobody,
        pytest.raises(LabelStudioUnavailableError, match="cannot be reached"),
    ):
        fetch_image("/data/upload/1/a.png", client=nobody, settings=settings())


def test_a_page_in_place_of_an_image(studio: Site, client: LabelStudio) -> None:
    page = (200, {"Content-Type": "text/html; charset=utf-8"}, b"<html>")
    studio.answers["/data/upload/1/a.png"] = page
    with pytest.raises(ImageSourceError, match="web page"):
        fetch_image("/data/upload/1/a.png", client=client, settings=settings())


def test_size_is_limited_announced_or_not(studio: Site, client: LabelStudio) -> None:
    large = bytes(2**20 + 1)
    studio.answers["/data/upload/1/a.png"] = (200, {}, large)
    studio.answers["/data/upload/1/b.png"] = (200, {"Content-Length": "99999999999"}, b"")
    for path in ("/data/upload/1/a.png", "/data/upload/1/b.png"):
        with pytest.raises(ImageSourceError, match="larger than the 1 MB"):
            fetch_image(path, client=client, settings=settings(max_image_mb=1))
    assert fetch_image("/data/upload/1/a.png", client=client, settings=settings()) == large


def test_time_is_limited(studio: Site, client: LabelStudio) -> None:
    studio.answers["/data/upload/1/a.png"] = (200, {"Content-Length": "1000"}, b"x")
    studio.pause_s = 0.02
    with pytest.raises(ImageSourceError, match="longer than MEDSAM3_IMAGE_TIMEOUT_S"):
        fetch_image("/data/upload/1/a.png", client=client, settings=settings(image_timeout_s=0.3))


def test_another_host_must_be_allowed_and_never_sees_the_token(
    web: Site, client: LabelStudio
) -> None:
    web.answers["/a.png"] = (200, {}, IMAGE)
    with pytest.raises(ImageSourceError, match="MEDSAM3_ALLOWED_IMAGE_HOSTS"):
        fetch_image(f"{web.url}/a.png", client=client, settings=settings())
    assert web.requests == []
    allowed = settings(allowed_image_hosts=("127.0.0.1",))
    assert fetch_image(f"{web.url}/a.png", client=client, settings=allowed) == IMAGE
    exact = settings(allowed_image_hosts=(f"127.0.0.1:{web.port}",))
    assert fetch_image(f"{web.url}/a.png", client=client, settings=exact) == IMAGE
    assert all("authorization" not in headers for _, headers in web.requests)
    other_port = settings(allowed_image_hosts=(f"127.0.0.1:{web.port + 1}",))
    with pytest.raises(ImageSourceError, match="may not be fetched"):
        fetch_image(f"{web.url}/a.png", client=client, settings=other_port)


def test_a_named_host_keeps_its_name_in_the_request(web: Site, client: LabelStudio) -> None:
    web.answers["/a.png"] = (200, {}, IMAGE)
    url = f"http://localhost:{web.port}/a.png"
    allowed = settings(allowed_image_hosts=("LOCALHOST",))
    assert fetch_image(url, client=client, settings=allowed) == IMAGE
    assert web.requests[0][1]["host"] == f"localhost:{web.port}"


def test_a_private_address_behind_a_pattern_is_refused(web: Site) -> None:
    hosts = ImageHosts(("*.localhost", "*.example.org"))
    with pytest.raises(ImageSourceError, match="may not be fetched"):
        hosts.addresses(httpx2.URL("http://example.org.evil.test/a.png"))
    with pytest.raises(ImageSourceError, match="may not be fetched"):
        hosts.addresses(httpx2.URL("http://allowed.example.org@evil.test/a.png"))
    with pytest.raises(ImageSourceError, match="inside a private network"):
        ImageHosts(()).addresses(httpx2.URL(web.url), vouched=True)
    with pytest.raises(ImageSourceError, match="inside a private network"):
        ImageHosts(()).addresses(httpx2.URL("http://[::ffff:10.0.0.1]/"), vouched=True)
    with pytest.raises(ImageSourceError, match="is not known"):
        ImageHosts(("no-such-host.invalid",)).addresses(httpx2.URL("http://no-such-host.invalid/"))


def test_a_link_local_address_is_refused_even_when_named() -> None:
    hosts = ImageHosts(("169.254.169.254",))
    with pytest.raises(ImageSourceError, match=r"169\.254\.169\.254"):
        hosts.addresses(httpx2.URL("http://169.254.169.254/latest/meta-data/"))


def test_a_redirect_is_checked_again(
    web: Site, make_site: Callable[[], Site], client: LabelStudio
) -> None:
    hidden = make_site()
    hidden.answers["/secret"] = (200, {}, IMAGE)
    web.answers["/a.png"] = redirect(f"{hidden.url}/secret")
    allowed = settings(allowed_image_hosts=(f"127.0.0.1:{web.port}",))
    with pytest.raises(ImageSourceError, match="may not be fetched"):
        fetch_image(f"{web.url}/a.png", client=client, settings=allowed)
    assert hidden.requests == []
    both = settings(allowed_image_hosts=("127.0.0.1",))
    assert fetch_image(f"{web.url}/a.png", client=client, settings=both) == IMAGE
    web.answers["/loop"] = redirect(f"{web.url}/loop")
    with pytest.raises(ImageSourceError, match="circle"):
        fetch_image(f"{web.url}/loop", client=client, settings=both)


def test_a_redirect_of_label_studio_carries_no_token(
    studio: Site, web: Site, client: LabelStudio
) -> None:
    web.answers["/bucket/a.png"] = (200, {}, IMAGE)
    studio.answers["/tasks/7/resolve/"] = redirect(f"{web.url}/bucket/a.png?X-Amz-Signature=abc")
    allowed = settings(allowed_image_hosts=("127.0.0.1",))
    reference = "s3://bucket/a.png"
    assert fetch_image(reference, client=client, settings=allowed, task_id=7) == IMAGE
    ((path, headers),) = web.requests
    assert path == "/bucket/a.png?X-Amz-Signature=abc"
    assert "authorization" not in headers
    encoded = base64.urlsafe_b64encode(reference.encode()).decode()
    assert studio.requests[0][0] == f"/tasks/7/resolve/?fileuri={encoded}"


def test_a_signed_link_into_the_private_network_needs_the_host_named(
    studio: Site, web: Site, client: LabelStudio
) -> None:
    studio.answers["/projects/3/resolve/"] = redirect(f"{web.url}/bucket/a.png?Signature=abc")
    with pytest.raises(ImageSourceError, match="inside a private network") as caught:
        fetch_image("gs://bucket/a.png", client=client, settings=settings(), project_id=3)
    assert "abc" not in str(caught.value)
    studio.answers["/data/upload/1/a.png"] = redirect(f"{web.url}/bucket/a.png")
    with pytest.raises(ImageSourceError, match="may not be fetched"):
        fetch_image("/data/upload/1/a.png", client=client, settings=settings())
    assert web.requests == []


def test_a_cloud_address_needs_its_task_and_a_storage(studio: Site, client: LabelStudio) -> None:
    with pytest.raises(ImageSourceError, match="needs the task or the project"):
        fetch_image("azure-blob://c/a.png", client=client, settings=settings())
    with pytest.raises(ImageSourceError, match="no cloud storage of the project"):
        fetch_image("azure-blob://c/a.png", client=client, settings=settings(), task_id=1)


@pytest.mark.parametrize(
    "reference", ["", "a.png", "//host/a.png", "file:///etc/passwd", "ftp://host/a.png", "s3:/a"]
)
def test_what_the_editor_could_not_show_is_refused(reference: str, client: LabelStudio) -> None:
    with pytest.raises(ImageSourceError, match="neither a path of Label Studio"):
        fetch_image(reference, client=client, settings=settings(), task_id=1)


def test_messages_hide_passwords_and_signatures(client: LabelStudio) -> None:
    with pytest.raises(ImageSourceError, match=r"https://example\.org/a\.png was") as caught:
        fetch_image(
            "https://me:hidden@example.org/a.png?sig=hidden", client=client, settings=settings()
        )
    assert "hidden" not in str(caught.value)


def test_inline_images(client: LabelStudio) -> None:
    inline = "data:image/png;base64," + base64.b64encode(IMAGE).decode()
    assert fetch_image(inline, client=client, settings=settings()) == IMAGE
    too_large = "data:image/png;base64," + "A" * (2 * 2**20)
    with pytest.raises(ImageSourceError, match=r"data:\.\.\. was not read: it is larger"):
        fetch_image(too_large, client=client, settings=settings(max_image_mb=1))
    with pytest.raises(ImageSourceError, match="base64"):
        fetch_image("data:image/png;base64,@@@", client=client, settings=settings())


def test_local_files_are_read_below_an_allowed_root_only(
    tmp_path: Path, studio: Site, client: LabelStudio
) -> None:
    root = tmp_path / "root"
    (root / "scans").mkdir(parents=True)
    (root / "scans" / "a b.png").write_bytes(IMAGE)
    (tmp_path / "secret.png").write_bytes(b"secret")
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    allowed = settings(allowed_local_roots=(root,))
    reference = "/data/local-files/?d=scans/a%20b.png"
    assert fetch_image(reference, client=client, settings=allowed) == IMAGE
    assert studio.requests == []
    for outside in ("../secret.png", "link.png", str(tmp_path / "secret.png"), "scans"):
        # Not below the root: Label Studio is asked, which has its own rules.
        with pytest.raises(ImageSourceError, match="LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED"):
            fetch_image(f"/data/local-files/?d={outside}", client=client, settings=allowed)
    assert len(studio.requests) == 4
    with pytest.raises(ImageSourceError, match="names no file"):
        fetch_image("/data/local-files/?d=", client=client, settings=allowed)
    (root / "large.png").write_bytes(bytes(2**20 + 1))
    small = settings(allowed_local_roots=(root,), max_image_mb=1)
    with pytest.raises(ImageSourceError, match="larger"):
        fetch_image("/data/local-files/?d=large.png", client=client, settings=small)


def test_local_files_come_through_label_studio_without_a_root(
    studio: Site, client: LabelStudio
) -> None:
    studio.answers["/data/local-files/"] = (200, {}, IMAGE)
    reference = "/data/local-files/?d=scans/a.png"
    assert fetch_image(reference, client=client, settings=settings()) == IMAGE
    assert studio.requests[0][0] == reference


def test_a_kept_image_stays_until_its_place_is_needed(studio: Site, client: LabelStudio) -> None:
    studio.answers["/data/upload/1/a.png"] = (200, {}, IMAGE)
    files = FetchedImages(client, settings(image_cache_mb=1))
    inline = "data:image/png;base64," + base64.b64encode(bytes(2**21)).decode()
    for reference in ("/data/upload/1/a.png", inline, "/data/upload/1/a.png"):
        assert files.get(reference, project_id=1)[0]
    assert len(studio.requests) == 1  # an inline image takes no place


def test_a_link_of_one_task_is_not_kept_for_another(studio: Site, client: LabelStudio) -> None:
    studio.answers["/tasks/8/resolve/"] = (200, {}, IMAGE)
    files = FetchedImages(client, settings())
    assert files.get("/tasks/8/resolve/?fileuri=x", project_id=1, task_id=8)[0] == IMAGE
    with pytest.raises(ImageSourceError, match="another task"):
        files.get("/tasks/8/resolve/?fileuri=x", project_id=1, task_id=7)
