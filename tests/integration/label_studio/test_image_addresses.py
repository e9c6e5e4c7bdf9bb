"""Hostile and odd image addresses, one row each: none gets through, none is silently lost."""

import base64
import gzip
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

import httpx2
import pytest

from backend.errors import ImageSourceError, LabelStudioError, LabelStudioUnavailableError
from backend.label_studio.client import LabelStudio
from backend.label_studio.hosts import ImageHosts
from backend.label_studio.images import fetch_image
from backend.label_studio.server import free_port
from backend.settings import Settings
from tests.support.http_server import Answer, Handler, Site
from tests.support.tokens import LEGACY_TOKEN

IMAGE = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 3
TEXT = base64.b64encode(IMAGE).decode()
LINES = "\r\n".join(TEXT[start : start + 76] for start in range(0, len(TEXT), 76))
BOMB = gzip.compress(gzip.compress(bytes(2**27)))
ENCODED = base64.urlsafe_b64encode(b"s3://bucket/a.png").decode()
EMPTY = gzip.compress(b"", mtime=0)
READ = ""  # the row's image is read
TASK, PROJECT = 7, 3


def redirect(url: str) -> Answer:
    return 302, {"Location": url}, b""


def compressed(body: bytes, how: str) -> Answer:
    return 200, {"Content-Encoding": how}, body


def drip_headers(request: Handler) -> None:
    """A byte now and then, so that no time-out of a single read is ever met."""
    request.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    for _ in range(2000):
        time.sleep(0.01)
        try:
            request.wfile.write(b"x")
        except OSError:
            return


ROWS = {
    # Label Studio under its own names.
    "upload": ("/data/upload/3/a.png", READ),
    "upload, absolute": ("{studio}/data/upload/3/a.png", READ),
    "localhost for 127.0.0.1": ("http://localhost:{port}/data/upload/3/a.png", READ),
    "::1 for 127.0.0.1": ("http://[::1]:{port}/data/upload/3/a.png", READ),
    "0.0.0.0 for 127.0.0.1": ("http://0.0.0.0:{port}/data/upload/3/a.png", READ),
    "alias": ("https://labels.example.org/data/upload/3/a.png", READ),
    "alias, other case and dot": ("HTTPS://Labels.Example.ORG./data/upload/3/a.png", READ),
    "alias, http for https": ("http://labels.example.org/data/upload/3/a.png", READ),
    "alias with its port": ("https://labels.example.org:443/data/upload/3/a.png", READ),
    "alias with a name": ("https://me:pw@labels.example.org/data/upload/3/a.png", READ),
    "alias below a path": ("http://label-studio:8080/inside/data/upload/3/a.png", READ),
    "alias at another port": (
        "https://labels.example.org:8443/data/upload/3/a.png",
        "MEDSAM3_LABEL_STUDIO_ALIASES",
    ),
    "found in its login page": ("https://public.example.org/data/upload/3/a.png", READ),
    "found, below its path": ("https://public.example.org/labels/data/upload/3/a.png", READ),
    "spaces and line breaks around": ("\n  /data/upload/3/a.png \t", READ),
    "local file": ("/data/local-files/?d=scans/a%20b.png", READ),
    "local file without the slash": ("/data/local-files?d=scans/a%20b.png", READ),
    "local file, absolute": ("{studio}/data/local-files/?d=scans/a%20b.png", READ),
    "local file, alias": ("https://labels.example.org/data/local-files/?d=scans/a%20b.png", READ),
    "local file, unknown name": (
        "http://seen.example.org/data/local-files/?d=scans/a%20b.png",
        READ,
    ),
    "local file, upwards": ("/data/local-files/?d=../secret.png", "serves a local file only"),
    "local file, link outside": ("/data/local-files/?d=link.png", "serves a local file only"),
    "local file, too long a name": ("/data/local-files/?d=" + "a" * 5000, "cannot be read"),
    "local file, circle": ("/data/local-files/?d=circle.png", "cannot be read|local file only"),
    "storage": ("s3://bucket/a.png", READ),
    "resolved already": (f"/tasks/{TASK}/resolve/?fileuri={ENCODED}", READ),
    "resolved for the project": (f"{{studio}}/projects/{PROJECT}/presign/?fileuri={ENCODED}", READ),
    "in its cloud storage": ("/storage-data/uploaded/?filepath=upload/3/a.png", READ),
    # What the token's user may see and the task's author may not.
    "token page": ("/api/current-user/token", "is a page of Label Studio"),
    "token page, absolute": ("{studio}/api/current-user/token", "is a page of Label Studio"),
    "token page, alias": ("https://labels.example.org/api/current-user/token", "is a page"),
    "export": ("/api/projects/3/export?exportType=JSON", "is a page of Label Studio"),
    "upwards": ("/data/../api/current-user/token", "leads through others"),
    "upwards, encoded": ("/data/%2e%2e/api/current-user/token", "leads through others"),
    "upwards, encoded twice": ("/data/%252e%252e/api/current-user/token", "leads through others"),
    "upwards, encoded often": ("/data/%25252525252e%2e/api/x", "leads through others"),
    "backslashes": ("/data/..\\api\\current-user\\token", "leads through others"),
    "double slash": ("/data//api/current-user/token", "leads through others"),
    "beginning like data": ("/database/x.png", "is a page of Label Studio"),
    "another project's upload": ("/data/upload/4/a.png", "upload of project 4"),
    "the same, encoded": ("/data/%75pload/%34/a.png", "upload of project 4"),
    "the same, in cloud storage": (
        "/storage-data/uploaded/?filepath=upload%2F4%2Fa.png",
        "upload of project 4",
    ),
    "the same, upwards": ("/storage-data/uploaded/?filepath=upload/3/../4/a.png", "through others"),
    "the same, in place": ("/storage-data/uploaded/?filepath=./upload/4/a.png", "through others"),
    "the same, second": (
        "/storage-data/uploaded/?filepath=upload/3/a.png&filepath=/upload/4/a.png",
        "upload of project 4",
    ),
    "a percent sign in the name": ("/data/upload/3/50%25.png", READ),
    "another task's object": ("/tasks/8/resolve/?fileuri=x", "another task or project"),
    "another project's object": ("/projects/4/presign/?fileuri=x", "another task or project"),
    "file proxy": ("/projects/3/file-proxy/?url=x", "is a page of Label Studio"),
    "a redirect to the token page": ("/data/upload/3/leads.png", "is a page of Label Studio"),
    # The web.
    "allowed host": ("{web}/a.png", READ),
    "with a fragment": ("{web}/a.png#page", READ),
    "another host": ("https://elsewhere.example.org/a.png", "MEDSAM3_ALLOWED_IMAGE_HOSTS"),
    "host after a name": ("http://labels.example.org@evil.example.org/a.png", "may not be fetched"),
    "bracket that stays open": ("http://[::1/x", "not a valid address"),
    "no such port": ("http://labels.example.org:99999/a.png", "not a valid address"),
    "port of letters": ("http://labels.example.org:port/a.png", "not a valid address"),
    "no host": ("http:///a.png", "not a way|not a valid|may not be fetched"),
    "half a character": ("http://host/\ud800.png", "not a valid address"),
    "redirect to a file": ("{web}/to-file", "not a way to fetch"),
    "redirect to metadata": ("{web}/to-metadata", "may not be fetched"),
    "redirect to Label Studio": ("{web}/to-studio", "may not be fetched"),
    "redirect to nonsense": ("{web}/to-nonsense", "is not a valid address"),
    "redirect to no such port": ("{web}/to-no-port", "not a valid address"),
    "circle": ("{web}/circle", "in a circle"),
    "Label Studio's path elsewhere": (
        "{web}/data/upload/3/gone.png",
        "MEDSAM3_LABEL_STUDIO_ALIASES",
    ),
    "gzip": ("{web}/gzip", READ),
    "gzip twice": ("{web}/gzip-twice", READ),
    "bomb": ("{web}/bomb", "larger than the 1 MB"),
    "bomb of Label Studio": ("/data/upload/3/bomb.png", "larger than the 1 MB"),
    "gzip without its end": ("{web}/cut", "its end is missing"),
    "no gzip at all": ("{web}/no-gzip", "is damaged"),
    "an unknown compression": ("{web}/brotli", "compressed as br"),
    "many layers": ("{web}/layers", "compressed as gzip, gzip, gzip"),
    "headers that drip": ("{web}/drip", "longer than MEDSAM3_IMAGE_TIMEOUT_S"),
    "busy, then there": ("{web}/busy", READ),
    "busy for an hour": ("{web}/busy-for-long", "asks to wait for 3600 seconds"),
    # Images in the address itself.
    "data": (f"data:image/png;base64,{TEXT}", READ),
    "data with line breaks": (f"data:image/png;base64,{LINES}", READ),
    "data with encoded line breaks": (f"data:image/png;base64,{quote(LINES)}", READ),
    "data with spaces": (f"data:image/png;base64, {TEXT[:99]} {TEXT[99:]}", READ),
    "data without padding": (f"data:image/png;base64,{TEXT.rstrip('=')}", READ),
    "data, all encoded": (f"data:image/png;base64,{quote(TEXT, safe='')}", READ),
    "data, upper case": (f"DATA:image/png;BASE64,{TEXT}", READ),
    "data with parameters": (f"data:image/png;name=a.png;charset=utf-8;base64 ,{TEXT}", READ),
    "data without a type": (f"data:;base64,{TEXT}", READ),
    "data with a fragment": (f"data:image/png;base64,{TEXT}#x", READ),
    "data broken in the scheme": (f"da\nta:image/png;base64,{TEXT}", READ),
    "data without base64": (f"data:image/png,{quote(IMAGE)}", READ),
    "data with other signs": ("data:image/png;base64,@@@@", "base64 text is damaged"),
    "data of the other base64": ("data:image/png;base64,_-_-", "base64 text is damaged"),
    "data with padding inside": ("data:image/png;base64,AA==AAAA", "base64 text is damaged"),
    "data of a length that cannot be": ("data:image/png;base64,AAAAA", "base64 text is damaged"),
    "data without a comma": (f"data:image/png;base64{TEXT}", "no comma"),
    "data without data": ("data:image/png;base64,", "the file is empty"),
    "data that is too large": ("data:image/png;base64," + "A" * 2**21, "larger than the 1 MB"),
    "base64 alone": (TEXT, "base64 alone"),
    "base64 of a JPEG alone": ("/9j/4AAQSkZJRgABAQ" + "A/+9" * 400, "base64 alone"),
    "base64 behind an address": (f"{{web}}/{TEXT.replace('/', '')}", "answered 404"),
    "base64 of nothing known": ("Zm9v" * 500, "neither a path"),
    # No address at all.
    "nothing": ("", "neither a path"),
    "spaces": ("   ", "neither a path"),
    "None": ("None", "neither a path"),
    "a name": ("a.png", "neither a path"),
    "without a scheme": ("//host/data/upload/3/a.png", "neither a path"),
    "a file": ("file:///etc/passwd", "neither a path"),
    "a script": ("javascript:alert(1)", "neither a path"),
    "a zero byte": ("/data/upload/3/a\0.png", "leads through others"),
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    (folder / "scans").mkdir(parents=True)
    (folder / "scans" / "a b.png").write_bytes(IMAGE)
    (tmp_path / "secret.png").write_bytes(b"secret")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "circle.png").symlink_to(folder / "circle.png")
    return folder


def prepare(studio: Site, web: Site) -> None:
    image = (200, {"Content-Type": "image/png"}, IMAGE)
    page = b'<link href="https://public.example.org/labels/static/css/main.css">'
    studio.answers |= {
        "/data/upload/3/a.png": image,
        "/data/upload/3/50%25.png": image,
        "/data/upload/3/bomb.png": compressed(BOMB, "gzip, gzip"),
        "/data/upload/3/leads.png": redirect("/api/current-user/token"),
        "/storage-data/uploaded/": image,
        f"/tasks/{TASK}/resolve/": image,
        f"/projects/{PROJECT}/presign/": image,
        "/user/login/": (200, {"Content-Type": "text/html"}, page),
        "/api/current-user/token": (200, {}, b"secret"),
    }
    busy = iter([(503, {"Retry-After": "0"}, b""), (429, {}, b"")])
    web.answers |= {
        "/a.png": image,
        "/to-file": redirect("file:///etc/passwd"),
        "/to-metadata": redirect("http://169.254.169.254/latest/meta-data/"),
        "/to-studio": redirect(f"{studio.url}/api/current-user/token"),
        "/to-nonsense": redirect("http://[::1"),
        "/to-no-port": redirect("http://127.0.0.1:99999/"),
        "/circle": redirect("/circle"),
        "/gzip": compressed(gzip.compress(IMAGE), "gzip"),
        "/gzip-twice": compressed(gzip.compress(gzip.compress(IMAGE)), "gzip, x-gzip"),
        "/bomb": compressed(BOMB, "gzip, gzip"),
        "/cut": compressed(gzip.compress(IMAGE)[:-9], "gzip"),
        "/no-gzip": compressed(IMAGE, "gzip"),
        "/brotli": compressed(IMAGE, "br"),
        "/layers": compressed(BOMB, "gzip, gzip, gzip"),
        "/drip": drip_headers,
        "/busy": lambda request: request.send(*next(busy, image)),
        "/busy-for-long": (429, {"Retry-After": "3600"}, b""),
    }


@pytest.mark.parametrize(("reference", "expected"), ROWS.values(), ids=ROWS.keys())
def test_an_address_is_read_or_refused_with_its_reason(
    reference: str, expected: str, studio: Site, web: Site, root: Path
) -> None:
    prepare(studio, web)
    given = (
        reference.replace("{studio}", studio.url)
        .replace("{port}", str(studio.port))
        .replace("{web}", web.url)
    )
    settings = Settings(
        _env_file=None,
        allowed_image_hosts=(f"127.0.0.1:{web.port}",),
        allowed_local_roots=(root,),
        label_studio_aliases=("https://labels.example.org", "label-studio:8080/inside"),
        max_image_mb=1,
        image_timeout_s=0.5 if "drip" in reference else 20,
    )
    aliases = settings.label_studio_aliases
    with LabelStudio(studio.url, LEGACY_TOKEN, attempts=1, aliases=aliases) as client:
        where = {"task_id": TASK, "project_id": PROJECT}
        if expected == READ:
            assert fetch_image(given, client=client, settings=settings, **where) == IMAGE
        else:
            with pytest.raises(ImageSourceError, match=expected) as caught:
                fetch_image(given, client=client, settings=settings, **where)
            message = str(caught.value)
            assert len(message) < 500
            assert not re.search(r"[A-Za-z0-9+/=_-]{110}", message)
            assert "secret" not in message or "secret.png" in message
    allowed = re.compile(r"/data/|/storage-data/|/tasks/7/|/projects/3/")
    for path, headers in studio.requests:
        assert "authorization" not in headers or allowed.match(path)
    assert all("authorization" not in headers for _, headers in web.requests)


@pytest.mark.parametrize(
    ("address", "named", "pattern"),
    [
        ("8.8.8.8", True, True),
        ("2606:4700::1111", True, True),
        ("64:ff9b::808:808", True, True),  # NAT64 to the world
        ("::ffff:8.8.8.8", True, True),
        ("10.0.0.1", True, False),
        ("127.0.0.1", True, False),
        ("100.64.0.1", True, False),
        ("198.18.0.1", True, False),
        ("192.88.99.1", True, False),
        ("240.0.0.1", True, False),
        ("fd00::1", True, False),
        ("fec0::1", True, False),
        ("::10.0.0.1", True, False),
        ("::ffff:10.0.0.1", True, False),
        ("::ffff:0:10.0.0.1", True, False),
        ("64:ff9b::10.0.0.1", True, False),
        ("64:ff9b:1::10.0.0.1", True, False),
        ("2002:a00:1::1", True, False),
        ("2002:808:808::1", True, False),
        ("2001:0:4136:e378:8000:63bf:3fff:fdd2", True, False),
        ("2001:db8::1", True, False),
        ("2001:20::1", True, False),
        ("3ffe::1", True, False),
        ("3fff::1", True, False),
        ("5f00::1", True, False),
        ("2606:4700::5efe:a00:1", True, False),
        ("100::1", True, False),
        ("169.254.169.254", False, False),
        ("::ffff:169.254.169.254", False, False),
        ("64:ff9b::169.254.169.254", False, False),
        ("2002:a9fe:a9fe::1", False, False),
        ("fe80::1", False, False),
        ("fd00:ec2::254", False, False),
        ("100.100.100.200", False, False),
        ("168.63.129.16", False, False),
        ("0.0.0.0", False, False),  # noqa: S104
        ("224.0.0.1", False, False),
        ("ff02::1", False, False),
    ],
)
def test_where_a_connection_may_go(address: str, named: bool, pattern: bool) -> None:
    url = httpx2.URL(f"http://[{address}]/" if ":" in address else f"http://{address}/")

    for hosts, vouched, passes in (
        (ImageHosts((address,)), False, named),
        (ImageHosts(()), True, pattern),
    ):
        if passes:
            assert hosts.addresses(url, vouched=vouched)
        else:
            with pytest.raises(ImageSourceError, match="inside a private network"):
                hosts.addresses(url, vouched=vouched)


@contextmanager
def slow_server(opening: bytes, piece: bytes) -> Iterator[int]:
    """A server that sends `opening` to whoever connects, then `piece` now and then; its port."""
    listener = socket.create_server(("127.0.0.1", 0))
    over = threading.Event()

    def serve() -> None:
        with suppress(OSError):
            connection, _ = listener.accept()
            with connection:
                connection.sendall(opening)
                while not over.wait(0.01):
                    connection.sendall(piece)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        over.set()
        listener.close()
        thread.join()


@pytest.mark.parametrize(
    ("scheme", "opening", "piece"),
    [
        ("https", b"\x16\x03\x03\x40\x00", b"\x02"),  # a handshake that never ends
        ("http", b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        ("http", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        ("http", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"0"),
        ("http", b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n" + EMPTY, EMPTY),
        ("http", b"HTTP/1.1 200 OK\r\n\r\n", b"x"),
    ],
)
def test_nothing_holds_a_fetch_longer_than_its_time(
    scheme: str, opening: bytes, piece: bytes, client: LabelStudio
) -> None:
    with slow_server(opening, piece) as port:
        settings = Settings(
            _env_file=None, allowed_image_hosts=(f"127.0.0.1:{port}",), image_timeout_s=0.5
        )
        with pytest.raises(ImageSourceError, match=r"longer than MEDSAM3_IMAGE_TIMEOUT|in time"):
            fetch_image(f"{scheme}://127.0.0.1:{port}/a.png", client=client, settings=settings)


@pytest.fixture
def proxy(web: Site, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A proxy for http that the environment names; it is asked for whole addresses."""
    for name in ("NO_PROXY", "no_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", web.url.removeprefix("http://"))
    web.answers["http://images.invalid/a.png"] = (200, {}, IMAGE)
    web.answers["http://moved.invalid/a.png"] = redirect("http://images.invalid/a.png")
    return web


def test_images_go_through_the_proxy(
    proxy: Site, client: LabelStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(_env_file=None, allowed_image_hosts=("images.invalid", "moved.invalid"))
    for host in ("images", "moved"):
        found = fetch_image(f"http://{host}.invalid/a.png", client=client, settings=settings)
        assert found == IMAGE
    assert all("authorization" not in headers for _, headers in proxy.requests)
    with pytest.raises(ImageSourceError, match="may not be fetched"):
        fetch_image("http://elsewhere.invalid/a.png", client=client, settings=settings)
    with pytest.raises(ImageSourceError, match="inside a private network"):
        ImageHosts(()).addresses(httpx2.URL("http://10.0.0.1/a.png"), vouched=True)
    monkeypatch.setenv("no_proxy", ".invalid")
    with pytest.raises(ImageSourceError, match="is not known"):
        fetch_image("http://images.invalid/a.png", client=client, settings=settings)


def test_a_proxy_that_is_not_there_is_named(
    client: LabelStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_PROXY", "no_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    address = f"http://me:hidden@127.0.0.1:{free_port()}"
    monkeypatch.setenv("http_proxy", address)
    settings = Settings(_env_file=None, allowed_image_hosts=("images.invalid",))
    with pytest.raises(ImageSourceError, match="through the proxy http://127") as caught:
        fetch_image("http://images.invalid/a.png", client=client, settings=settings)
    assert "hidden" not in str(caught.value)


def test_headers_of_label_studio_that_drip(studio: Site, client: LabelStudio) -> None:
    studio.answers["/data/upload/3/a.png"] = drip_headers
    settings = Settings(_env_file=None, image_timeout_s=0.5)
    with pytest.raises(LabelStudioUnavailableError, match=r"127\.0\.0\.1"):
        fetch_image("/data/upload/3/a.png", client=client, settings=settings)


def test_an_annotation_that_is_a_bomb(studio: Site, client: LabelStudio) -> None:
    studio.answers["/api/annotations/1/"] = compressed(BOMB, "gzip, gzip")
    with pytest.raises(LabelStudioError, match="larger than 1000 bytes"):
        client.download("/api/annotations/1/", max_bytes=1000)
