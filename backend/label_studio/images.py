"""A task's images: fetched from wherever the task says that they are, kept for a while, decoded.

The same reference that Label Studio's editor shows is fetched here: an upload, a local file, a
web address or an object in cloud storage.
"""

import base64
import hashlib
import logging
import re
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import httpx2

from backend.errors import (
    ImageSourceError,
    ImageUnavailableError,
    LabelStudioAuthError,
    LabelStudioUnavailableError,
)
from backend.label_studio.auth import TRY_AGAIN, failure, moved, moved_to, retry_after_s
from backend.label_studio.bodies import pieces
from backend.label_studio.client import LabelStudio
from backend.label_studio.deadline import Deadline
from backend.label_studio.hosts import ImageHosts, open_foreign, proxy_for, shown
from backend.label_studio.own_addresses import check_path, is_link
from backend.label_studio.references import (
    LOCAL_FILES,
    cleaned,
    inline,
    is_inline,
    shown_reference,
)
from backend.processes.memory import cache_limits
from backend.settings import Settings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from medsam3_model.images.limits import ImageLimits

log = logging.getLogger(__name__)

_CLOUD_SCHEMES = ("s3", "gs", "azure-blob")
_MAX_REDIRECTS = 5
# Label Studio answers 500 for a file that is missing, but also while its database is busy.
_PAUSES_S = (0.3, 1.0)
# Only these lead to signed links that Label Studio made itself from a storage of the project.
_SIGNING_PATH = re.compile(r"/(tasks|projects)/\d+/(resolve|presign)/")


@dataclass(frozen=True)
class _Fetch:
    """One image that is being fetched: for which task, and what it may cost."""

    client: LabelStudio
    settings: Settings
    deadline: Deadline
    task_id: int | None
    project_id: int | None

    @property
    def hosts(self) -> ImageHosts:
        return ImageHosts(self.settings.allowed_image_hosts)

    def check_size(self, size: int) -> None:
        if size > self.settings.max_image_mb * 2**20:
            raise ImageSourceError(
                f"it is larger than the {self.settings.max_image_mb} MB that MEDSAM3_MAX_IMAGE_MB "
                "allows"
            )

    def pause(self, wanted_s: float) -> None:
        """Wait, if there is time for it."""
        if wanted_s >= self.deadline.remaining_s():
            raise ImageUnavailableError(f"its server asks to wait for {wanted_s:.0f} seconds")
        time.sleep(wanted_s)


# Project, task where the file is for that task alone, and reference; when it came, and its SHA-256.
_FileKey = tuple[int, int | None, str]
_KeptFile = tuple[float, bytes, str]


class FetchedImages:
    """Images' files, fetched once and then kept within `image_cache_mb`; threads may share it.

    Args:
        client, settings: see `fetch_image`.
        keep_s: seconds after which a file is fetched again. An upload never changes under its
            address, but a local file may.
    """

    def __init__(self, client: LabelStudio, settings: Settings, *, keep_s: float = 300.0) -> None:
        self._client, self._settings, self._keep_s = client, settings, keep_s
        self._size, self._most_bytes = 0, cache_limits(settings).images
        self._kept: OrderedDict[_FileKey, _KeptFile] = OrderedDict()
        self._lock = threading.Lock()

    def get(
        self, reference: str, *, project_id: int, task_id: int | None = None, keep: bool = True
    ) -> tuple[bytes, str]:
        """The file behind a reference and its SHA-256; raises as `fetch_image`.

        What is not to be kept pushes out nothing that is.
        """
        if is_inline(reference.lstrip()):
            # In the task's data already: keeping it would only push others out.
            content = self._fetch(reference, project_id, task_id)
            return content, hashlib.sha256(content).hexdigest()
        # A link that Label Studio made for a task is for that task alone.
        key = (project_id, task_id if _SIGNING_PATH.search(reference) else None, reference)
        # Taken out and put back: the order is that of use, and the oldest is dropped first.
        fetched = self._taken_out(key)
        if fetched is None or time.monotonic() - fetched[0] > self._keep_s:
            content = self._fetch(reference, project_id, task_id)
            fetched = (time.monotonic(), content, hashlib.sha256(content).hexdigest())
        else:
            keep = True  # As it was, for somebody else.
        if keep:
            self._put(key, fetched)
        return fetched[1], fetched[2]

    def _taken_out(self, key: _FileKey) -> _KeptFile | None:
        with self._lock:
            fetched = self._kept.pop(key, None)
            if fetched is not None:
                self._size -= len(fetched[1])
            return fetched

    def _put(self, key: _FileKey, fetched: _KeptFile) -> None:
        with self._lock:
            # Another thread may have fetched the same one meanwhile.
            replaced = self._kept.pop(key, None)
            self._size += len(fetched[1]) - (len(replaced[1]) if replaced else 0)
            self._kept[key] = fetched
            while self._size > self._most_bytes and len(self._kept) > 1:
                _, (_, dropped, _) = self._kept.popitem(last=False)
                self._size -= len(dropped)

    def _fetch(self, reference: str, project_id: int, task_id: int | None) -> bytes:
        return fetch_image(
            reference,
            client=self._client,
            settings=self._settings,
            task_id=task_id,
            project_id=project_id,
        )


def image_limits(settings: Settings) -> "ImageLimits":
    """What `max_image_mb` and `max_image_megapixels` allow."""
    from medsam3_model.images.limits import ImageLimits

    return ImageLimits(
        max_bytes=settings.max_image_mb * 2**20,
        max_pixels=int(settings.max_image_megapixels * 1e6),
    )


def decode(content: bytes, settings: Settings, *, task_id: int | None) -> "NDArray[np.uint8]":
    """A fetched file as RGB uint8 (H, W, 3), within `max_image_mb` and `max_image_megapixels`.

    Of a volume or a stack it is the middle slice, and the log says so.

    Raises:
        ImageError: it is damaged, too large, or of an unknown format.
    """
    from medsam3_model.images.reading import open_picture

    with open_picture(content, limits=image_limits(settings)) as picture:
        if picture.pages > 1:
            log.warning(
                "the image of task %d is a volume or stack of %d slices: only its middle one, "
                "slice %d, is read",
                task_id,
                picture.pages,
                picture.page + 1,
            )
        return picture.rgb()


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
            `gs://...`, `azure-blob://...` or `data:...`.
        client: sends its token to Label Studio's own address only.
        settings: `allowed_image_hosts`, `allowed_local_roots`, `max_image_mb`, `image_timeout_s`.
        task_id, project_id: whose image it is. Label Studio looks up the storage of a cloud
            address there, so one of them is needed for those.

    Raises:
        ImageSourceError: the image cannot be had; trying again without a change does not help.
        ImageUnavailableError: its host does not answer, or is busy; trying again later helps.
        LabelStudioAuthError: the token is refused.
        LabelStudioUnavailableError: Label Studio does not answer; trying again later helps.
    """
    try:
        with Deadline(settings.image_timeout_s) as deadline:
            fetch = _Fetch(client, settings, deadline, task_id, project_id)
            content = _content(fetch, cleaned(reference))
        if not content:
            raise ImageSourceError("the file is empty")
    except (ImageSourceError, httpx2.InvalidURL, httpx2.DecodingError) as error:
        reason = "it is not a valid address" if isinstance(error, httpx2.InvalidURL) else error
        later = isinstance(error, ImageUnavailableError)
        raise (ImageUnavailableError if later else ImageSourceError)(
            f"The image {shown_reference(reference)} was not read: {reason}."
        ) from error
    return content


def _content(fetch: _Fetch, reference: str) -> bytes:
    if is_inline(reference):
        return inline(reference, fetch.check_size)
    scheme = reference.partition("://")[0].lower() if "://" in reference else ""
    if scheme in _CLOUD_SCHEMES:
        return _from_label_studio(fetch, _resolve_link(fetch, reference))
    if scheme not in ("http", "https") and (not reference.startswith("/") or scheme):
        raise ImageSourceError(
            "it is neither a path of Label Studio nor an http, s3, gs or azure-blob address"
        )
    local = _from_local_roots(fetch, reference)
    if local is not None:
        return local
    path = _own_path(fetch, reference)
    return _from_web(fetch, reference) if path is None else _from_label_studio(fetch, path)


def _own_path(fetch: _Fetch, reference: str) -> str | None:
    """Label Studio's path for a reference; None where it leads to another host.

    Raises:
        ImageSourceError: it names no host.
    """
    path = fetch.client.path_of(reference)
    if path is None and reference.startswith("//"):
        raise ImageSourceError(
            "it is neither a path of Label Studio nor an http, s3, gs or azure-blob address"
        )
    if path is None and is_link(urlsplit(reference).path):
        url = httpx2.URL(reference)
        # Label Studio writes its public address into links, and may be asked at another one.
        if not fetch.hosts.includes(url) and fetch.client.learn_public_address(fetch.deadline):
            path = fetch.client.path_of(reference)
    return path


def _resolve_link(fetch: _Fetch, reference: str) -> str:
    """Label Studio's link for a cloud address: Label Studio has the storage's credentials."""
    encoded = base64.urlsafe_b64encode(reference.encode()).decode()
    if fetch.task_id is not None:
        return f"/tasks/{fetch.task_id}/resolve/?fileuri={encoded}"
    if fetch.project_id is not None:
        return f"/projects/{fetch.project_id}/resolve/?fileuri={encoded}"
    raise ImageSourceError("a cloud address needs the task or the project that it belongs to")


def _from_local_roots(fetch: _Fetch, reference: str) -> bytes | None:
    """The file below an allowed root, or None when it has to be asked for.

    The host of a link does not matter: Label Studio writes the one that people see, and which
    folders may be read, the roots say.
    """
    try:
        parts = urlsplit(reference)
    except ValueError:
        raise ImageSourceError("it is not a valid address") from None
    if not parts.path.rstrip("/").endswith(LOCAL_FILES):
        return None
    relative = "".join(parse_qs(parts.query).get("d", [])).lstrip("/")
    if not relative or "\0" in relative:
        raise ImageSourceError("it names no file")
    for root in fetch.settings.allowed_local_roots:
        base = root.expanduser().resolve()
        try:
            path = (base / relative).resolve()
            # Checked after resolving: neither `..` nor a symbolic link may lead out of the root.
            if path.is_relative_to(base) and path.is_file():
                with path.open("rb") as file:
                    content = file.read(fetch.settings.max_image_mb * 2**20 + 1)
                fetch.check_size(len(content))
                return content
        except (OSError, RuntimeError) as error:  # RuntimeError: links that lead in a circle
            raise ImageSourceError(
                f"the local file cannot be read ({type(error).__name__})"
            ) from error
    return None


def _from_label_studio(fetch: _Fetch, path: str) -> bytes:
    client, pauses = fetch.client, iter(_PAUSES_S)
    # Each round is a redirect that is followed or an answer that is tried again.
    for _ in range(_MAX_REDIRECTS + len(_PAUSES_S)):
        check_path(path, task_id=fetch.task_id, project_id=fetch.project_id)
        with client.stream(path, deadline=fetch.deadline) as response:
            busy = response.status_code == 500 or (
                response.status_code in TRY_AGAIN and "Retry-After" in response.headers
            )
            pause = next(pauses, None) if busy else None
            if pause is None and not response.is_redirect:
                _check_label_studio_status(path, response, client)
                return _read(fetch, response)
            asked_s = retry_after_s(response) or 0.0
            if address := moved_to(client.url, response):
                raise moved(address, response)
            target = response.url.join(response.headers.get("Location", ""))
        if pause is not None:
            if asked_s >= fetch.deadline.remaining_s():
                raise LabelStudioUnavailableError(
                    f"Label Studio asks to wait for {asked_s:.0f} seconds: try again later."
                )
            fetch.pause(max(pause, asked_s))
            continue
        own = client.path_of(str(target))
        if own is None:
            signed = _SIGNING_PATH.search(urlsplit(path).path) is not None
            return _from_web(fetch, str(target), vouched=signed)
        if "/user/login" in target.path:
            raise LabelStudioAuthError(
                "Label Studio asks to log in for an image: its token is no longer accepted."
            )
        path = own
    raise ImageSourceError("Label Studio redirects in a circle")


def _check_label_studio_status(path: str, response: httpx2.Response, client: LabelStudio) -> None:
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
    elif where.rstrip("/").endswith(LOCAL_FILES):
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
    try:
        url = httpx2.URL(reference)
        waits = iter(_PAUSES_S)
        for _ in range(_MAX_REDIRECTS + len(_PAUSES_S)):
            addresses = _checked_addresses(fetch, url, vouched=vouched)
            with open_foreign(url, addresses, fetch.deadline) as response:
                wait = next(waits, None) if response.status_code in TRY_AGAIN else None
                if wait is None and not response.is_redirect:
                    if response.status_code in TRY_AGAIN:
                        raise ImageUnavailableError(_refusal(url, response.status_code))
                    if response.status_code != 200:
                        raise ImageSourceError(_refusal(url, response.status_code))
                    return _read(fetch, response)
                wait = None if wait is None else max(wait, retry_after_s(response) or 0.0)
                target = url.join(response.headers.get("Location", ""))
            if wait is not None:
                fetch.pause(wait)
                continue
            # Only the link that Label Studio signed is vouched for, not where it leads on to.
            url, vouched = target, False
    except httpx2.TimeoutException as error:
        raise ImageUnavailableError("its host did not answer in time") from error
    except httpx2.ProtocolError as error:
        fetch.deadline.remaining_s()
        raise ImageUnavailableError("its host does not answer as a web server does") from error
    except httpx2.TransportError as error:
        fetch.deadline.remaining_s()
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            raise ImageSourceError(
                "its host's certificate is not trusted: set SSL_CERT_FILE to its authority's"
            ) from error
        proxy = proxy_for(url)
        way = f" through the proxy {shown(proxy)}" if proxy else ""
        raise ImageUnavailableError(
            f"its host cannot be reached{way} ({type(error).__name__})"
        ) from error
    raise ImageSourceError("its host redirects in a circle")


def _checked_addresses(fetch: _Fetch, url: httpx2.URL, *, vouched: bool) -> list[str]:
    try:
        return fetch.hosts.addresses(url, vouched=vouched, timeout_s=fetch.deadline.remaining_s())
    except ImageSourceError as error:
        if is_link(url.path) and not fetch.hosts.includes(url):
            raise ImageSourceError(
                f"{error}, or, where this is another address of Label Studio itself, add it to "
                "MEDSAM3_LABEL_STUDIO_ALIASES"
            ) from error
        raise


def _refusal(url: httpx2.URL, status: int) -> str:
    reason = f"{url.host} answered {status}"
    if status in (401, 403, 404) and is_link(url.path):
        return (
            f"{reason}; where this is another address of Label Studio itself, add it to "
            "MEDSAM3_LABEL_STUDIO_ALIASES, so that the token goes along"
        )
    return reason


def _read(fetch: _Fetch, response: httpx2.Response) -> bytes:
    announced = response.headers.get("Content-Length", "")
    if announced.isdecimal() and announced.isascii():
        fetch.check_size(int(announced[:20]))
    content = bytearray()
    try:
        for piece in pieces(response):
            content += piece
            fetch.check_size(len(content))
            fetch.deadline.remaining_s()
    except httpx2.TransportError:
        # Cut at its end.
        fetch.deadline.remaining_s()
        raise
    fetch.deadline.remaining_s()
    return bytes(content)
