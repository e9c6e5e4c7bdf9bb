"""A task's images: fetched from wherever the task says that they are, kept for a while, decoded.

The same reference that Label Studio's editor shows is fetched here: an upload, a local file, a
web address or an object in cloud storage.
"""

import base64
import binascii
import hashlib
import re
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import httpx

from backend.errors import ImageSourceError, LabelStudioAuthError, LabelStudioUnavailableError
from backend.label_studio.auth import TRY_AGAIN, failure
from backend.label_studio.client import LabelStudio
from backend.label_studio.hosts import ImageHosts, open_foreign
from backend.settings import Settings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_CLOUD_SCHEMES = ("s3", "gs", "azure-blob")
_LOCAL_FILES = "/data/local-files/"
_MAX_REDIRECTS = 5
# Label Studio answers 500 for a file that is missing, but also while its database is busy.
_PAUSES_S = (0.3, 1.0)
# Only these lead to signed links that Label Studio made itself from a storage of the project.
_SIGNING_PATH = re.compile(r"/(tasks|projects)/\d+/(resolve|presign)/")


@dataclass(frozen=True)
class _Fetch:
    """One image that is being fetched: from where, and what it may cost."""

    client: LabelStudio
    settings: Settings
    deadline: float

    def remaining_s(self) -> float:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise ImageSourceError("it took longer than MEDSAM3_IMAGE_TIMEOUT_S allows")
        return left

    def check_size(self, size: int) -> None:
        if size > self.settings.max_image_mb * 2**20:
            raise ImageSourceError(
                f"it is larger than the {self.settings.max_image_mb} MB that MEDSAM3_MAX_IMAGE_MB "
                "allows"
            )


class FetchedImages:
    """Images' files, fetched once and then kept within `image_cache_mb`.

    Args:
        client, settings: see `fetch_image`.
        keep_s: seconds after which a file is fetched again. An upload never changes under its
            address, but a local file may.
    """

    def __init__(self, client: LabelStudio, settings: Settings, *, keep_s: float = 300.0) -> None:
        self._client, self._settings, self._keep_s = client, settings, keep_s
        self._size = 0
        self._kept: OrderedDict[tuple[int, str], tuple[float, bytes, str]] = OrderedDict()

    def get(
        self, reference: str, *, project_id: int, task_id: int | None = None
    ) -> tuple[bytes, str]:
        """The file behind a reference and its SHA-256; raises as `fetch_image`."""
        key = (project_id, reference)
        # Taken out and put back: the order is that of use, and the oldest is dropped first.
        fetched = self._kept.pop(key, None)
        if fetched is not None:
            self._size -= len(fetched[1])
        if fetched is None or time.monotonic() - fetched[0] > self._keep_s:
            content = fetch_image(
                reference,
                client=self._client,
                settings=self._settings,
                task_id=task_id,
                project_id=project_id,
            )
            fetched = (time.monotonic(), content, hashlib.sha256(content).hexdigest())
        self._kept[key] = fetched
        self._size += len(fetched[1])
        while self._size > self._settings.image_cache_mb * 2**20 and len(self._kept) > 1:
            _, (_, dropped, _) = self._kept.popitem(last=False)
            self._size -= len(dropped)
        return fetched[1], fetched[2]


def decode(content: bytes, settings: Settings) -> "NDArray[np.uint8]":
    """A fetched file as RGB uint8 (H, W, 3), within `max_image_mb` and `max_image_megapixels`.

    Raises:
        ImageError: it is damaged, too large, or of an unknown format.
    """
    from medsam3_model.images.limits import ImageLimits
    from medsam3_model.images.reading import read_image

    limits = ImageLimits(
        max_bytes=settings.max_image_mb * 2**20,
        max_pixels=int(settings.max_image_megapixels * 1e6),
    )
    return read_image(content, limits=limits)


def fetch_image(
    reference: str,
    *,
    client: LabelStudio,
    settings: Settings,
    task_id: int | None = None,
    project_id: int | None = None,
) -> bytes:
    """The encoded image behind a task's `$image` value.

    Args:
        reference: `/data/upload/...`, `/data/local-files/?d=...`, `http(s)://...`, `s3://...`,
            `gs://...`, `azure-blob://...` or `data:...;base64,...`.
        client: sends its token to Label Studio's own address only.
        settings: `allowed_image_hosts`, `allowed_local_roots`, `max_image_mb`, `image_timeout_s`.
        task_id, project_id: where Label Studio looks up the storage of a cloud address; one of
            them is needed for those.

    Raises:
        ImageSourceError: the image cannot be had; trying again without a change does not help.
        LabelStudioAuthError: the token is refused.
        LabelStudioUnavailableError: Label Studio does not answer; trying again later helps.
    """
    fetch = _Fetch(client, settings, time.monotonic() + settings.image_timeout_s)
    try:
        content = _content(fetch, str(reference).strip(), task_id, project_id)
        if not content:
            raise ImageSourceError("the file is empty")
    except ImageSourceError as error:
        raise ImageSourceError(f"The image {_shown(reference)} was not read: {error}.") from error
    return content


def _content(fetch: _Fetch, reference: str, task_id: int | None, project_id: int | None) -> bytes:
    if reference.startswith("data:"):
        return _inline(fetch, reference)
    scheme = reference.partition("://")[0].lower() if "://" in reference else ""
    if scheme in _CLOUD_SCHEMES:
        reference = _resolve_link(reference, task_id, project_id)
    elif scheme in ("http", "https"):
        if not fetch.client.is_own(reference):
            return _from_web(fetch, reference)
    elif scheme or reference.startswith("//") or not reference.startswith("/"):
        raise ImageSourceError(
            "it is neither a path of Label Studio nor an http, s3, gs or azure-blob address"
        )
    local = _from_local_roots(fetch, reference)
    return local if local is not None else _from_label_studio(fetch, reference)


def _inline(fetch: _Fetch, reference: str) -> bytes:
    header, _, payload = reference.partition(",")
    if not header.endswith(";base64"):
        raise ImageSourceError("a data: address must be base64")
    fetch.check_size(len(payload) * 3 // 4)
    try:
        return base64.b64decode(payload, validate=True)
    except binascii.Error as error:
        raise ImageSourceError("its base64 text is damaged") from error


def _resolve_link(reference: str, task_id: int | None, project_id: int | None) -> str:
    """Label Studio's link for a cloud address: Label Studio has the storage's credentials."""
    encoded = base64.urlsafe_b64encode(reference.encode()).decode()
    if task_id is not None:
        return f"/tasks/{task_id}/resolve/?fileuri={encoded}"
    if project_id is not None:
        return f"/projects/{project_id}/resolve/?fileuri={encoded}"
    raise ImageSourceError("a cloud address needs the task or the project that it belongs to")


def _from_local_roots(fetch: _Fetch, reference: str) -> bytes | None:
    """The file below an allowed root, or None when Label Studio has to be asked."""
    parts = urlsplit(reference)
    if not parts.path.endswith(_LOCAL_FILES):
        return None
    relative = "".join(parse_qs(parts.query).get("d", [])).lstrip("/")
    if not relative or "\0" in relative:
        raise ImageSourceError("it names no file")
    for root in fetch.settings.allowed_local_roots:
        base = root.expanduser().resolve()
        path = (base / relative).resolve()
        # Checked after resolving: neither `..` nor a symbolic link may lead out of the root.
        if path.is_relative_to(base) and path.is_file():
            fetch.check_size(path.stat().st_size)
            return path.read_bytes()
    return None


def _from_label_studio(fetch: _Fetch, reference: str) -> bytes:
    path, pauses = reference, iter(_PAUSES_S)
    # Each round is a redirect that is followed or a 500 that is tried again.
    for _ in range(_MAX_REDIRECTS + len(_PAUSES_S)):
        with fetch.client.stream(path, timeout_s=fetch.remaining_s()) as response:
            pause = next(pauses, None) if response.status_code == 500 else None
            if pause is None and not response.is_redirect:
                _check_label_studio_status(path, response, fetch.client)
                return _read(fetch, response)
            target = httpx.URL(fetch.client.url).join(path)
            target = target.join(response.headers.get("Location", ""))
        if pause is not None:
            time.sleep(pause)
            continue
        if not fetch.client.is_own(str(target)):
            signed = _SIGNING_PATH.search(urlsplit(path).path) is not None
            return _from_web(fetch, str(target), vouched=signed)
        if "/user/login" in target.path:
            raise LabelStudioAuthError(
                "Label Studio asks to log in for an image: its token is no longer accepted."
            )
        path = str(target)
    raise ImageSourceError("Label Studio redirects in a circle")


def _check_label_studio_status(path: str, response: httpx.Response, client: LabelStudio) -> None:
    status = response.status_code
    where = urlsplit(path).path
    if status == 200:
        if response.headers.get("Content-Type", "").startswith("text/html"):
            raise ImageSourceError("Label Studio answered with a web page in place of an image")
    elif status == 401:
        response.read()
        raise failure(client.url, "GET", where, response)
    elif status in TRY_AGAIN:
        raise LabelStudioUnavailableError(
            f"Label Studio answered {status} for an image: try again later.", status
        )
    elif where.endswith(_LOCAL_FILES):
        raise ImageSourceError(
            f"Label Studio answered {status}: it serves a local file only with "
            "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true, when the file is below "
            "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT and its folder is connected to the project as "
            "local storage"
        )
    elif _SIGNING_PATH.search(where):
        raise ImageSourceError(
            f"Label Studio answered {status}: no cloud storage of the project holds it, or the "
            "storage could not be read"
        )
    elif status in (404, 500) and "/data/upload/" in where:
        # A missing upload is an internal error in Label Studio, not a 404.
        raise ImageSourceError(f"Label Studio answered {status}: the uploaded file is missing")
    else:
        raise ImageSourceError(f"Label Studio answered {status}")


def _from_web(fetch: _Fetch, reference: str, *, vouched: bool = False) -> bytes:
    hosts = ImageHosts(fetch.settings.allowed_image_hosts)
    try:
        url = httpx.URL(reference)
        for _ in range(_MAX_REDIRECTS):
            addresses = hosts.addresses(url, vouched=vouched)
            with open_foreign(url, addresses, fetch.remaining_s()) as response:
                if not response.is_redirect:
                    if response.status_code != 200:
                        raise ImageSourceError(f"{url.host} answered {response.status_code}")
                    return _read(fetch, response)
                url = url.join(response.headers["Location"])
            # Only the link that Label Studio signed is vouched for, not where it leads on to.
            vouched = False
    except httpx.InvalidURL as error:
        raise ImageSourceError("it is not a valid address") from error
    except httpx.TimeoutException as error:
        raise ImageSourceError("its host did not answer in time") from error
    except httpx.TransportError as error:
        raise ImageSourceError(f"its host cannot be reached ({type(error).__name__})") from error
    raise ImageSourceError("its host redirects in a circle")


def _read(fetch: _Fetch, response: httpx.Response) -> bytes:
    announced = response.headers.get("Content-Length", "")
    if announced.isdigit():
        fetch.check_size(int(announced))
    content = bytearray()
    for chunk in response.iter_bytes():
        content += chunk
        fetch.check_size(len(content))
        fetch.remaining_s()
    return bytes(content)


def _shown(reference: str) -> str:
    """What a message may show of a reference: no query of a signed link, no password, no data."""
    reference = str(reference).strip()
    if reference.startswith("data:"):
        return "data:..."
    parts = urlsplit(reference)
    host = parts.netloc.rpartition("@")[2]
    start = f"{parts.scheme}://{host}" if parts.scheme else ""
    local = f"?{parts.query}" if parts.path.endswith(_LOCAL_FILES) else ""
    return f"{start}{parts.path}{local}"[:200] or "''"
