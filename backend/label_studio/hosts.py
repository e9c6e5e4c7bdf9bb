"""Hosts from which images may be fetched, and origins of URLs.

Annotators and imports write task data: without these checks, a task that names an address inside
the network would have this backend fetch it and show it.
"""

import ipaddress
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import urlsplit

import httpx

from backend.errors import ImageSourceError

_SETTING = "MEDSAM3_ALLOWED_IMAGE_HOSTS"
_DEFAULT_PORTS = {"http": 80, "https": 443}


def origin(url: str) -> tuple[str, str, int | None]:
    """Scheme, lower-case host and port (the scheme's own where none is given)."""
    parts = urlsplit(url)
    port = parts.port or _DEFAULT_PORTS.get(parts.scheme)
    return parts.scheme, (parts.hostname or "").lower(), port


def shown(url: str) -> str:
    """Scheme, host and port: what a message may show of a URL that may carry credentials."""
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname or ''}{port}"


@dataclass(frozen=True)
class ImageHosts:
    """The hosts beside Label Studio's own.

    Attributes:
        allowed: `host`, `host:port` or `*.domain`. A host that is named in full may have a
            private address; one that only fits a pattern may not.
    """

    allowed: tuple[str, ...]

    def addresses(self, url: httpx.URL, *, vouched: bool = False) -> list[str]:
        """Check a URL and return the IP addresses that a connection to it may use.

        Args:
            vouched: Label Studio itself redirected here (a signed link to cloud storage), so the
                host need not be listed as long as its address is a public one.

        Raises:
            ImageSourceError: another scheme, a host that is not allowed or does not resolve, or
                an address that its host may not have.
        """
        if url.scheme not in ("http", "https") or not url.host:
            raise ImageSourceError(f"{url.scheme or 'an empty'}: is not a way to fetch an image")
        named = self._is_named(url)
        if not (named or vouched or self._fits_pattern(url)):
            raise ImageSourceError(
                f"images may not be fetched from {shown(str(url))}: add the host to {_SETTING}"
            )
        addresses = _resolve(url)
        for address in addresses:
            if not _may_connect(address, named):
                raise ImageSourceError(
                    f"{shown(str(url))} leads to the address {address} inside a private network: "
                    f"where that is meant, name the host itself in {_SETTING}"
                )
        return addresses

    def _is_named(self, url: httpx.URL) -> bool:
        port = url.port or _DEFAULT_PORTS.get(url.scheme)
        names = {_ascii_host(url), f"{_ascii_host(url)}:{port}"}
        return any(entry.lower() in names for entry in self.allowed)

    def _fits_pattern(self, url: httpx.URL) -> bool:
        host = _ascii_host(url)
        return any(
            host.endswith(entry[1:].lower()) for entry in self.allowed if entry.startswith("*.")
        )


@contextmanager
def open_foreign(
    url: httpx.URL, addresses: list[str], timeout_s: float
) -> Iterator[httpx.Response]:
    """GET `url` from one of the checked `addresses`; no credentials, no redirects followed.

    The connection goes to the address that was checked, not to the name, because a second look-up
    could give another answer. TLS still verifies the certificate of the name.

    Raises:
        httpx.TransportError: no address could be reached in time.
    """
    with httpx.Client(
        timeout=httpx.Timeout(timeout_s, connect=min(timeout_s, 10.0)),
        follow_redirects=False,
        trust_env=False,
        verify=_tls(),
    ) as client:
        # A name may have addresses that this machine has no way to (IPv6): the next one is tried.
        for index, address in enumerate(addresses):
            request = client.build_request(
                "GET",
                url.copy_with(host=address, username=None, password=None),
                headers={"Host": url.netloc.decode("ascii"), "Accept-Encoding": "identity"},
                extensions={"sni_hostname": _ascii_host(url)},
            )
            try:
                response = client.send(request, stream=True)
            except httpx.ConnectError:
                if index == len(addresses) - 1:
                    raise
                continue
            try:
                yield response
            finally:
                response.close()
            return


@lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    # Reading the certificates takes longer than many an image.
    return httpx.create_ssl_context()


def _ascii_host(url: httpx.URL) -> str:
    return url.raw_host.decode("ascii").lower()


def _resolve(url: httpx.URL) -> list[str]:
    port = url.port or _DEFAULT_PORTS.get(url.scheme)
    try:
        entries = socket.getaddrinfo(_ascii_host(url), port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ImageSourceError(f"the host of {shown(str(url))} is not known") from error
    return list(dict.fromkeys(str(entry[4][0]).partition("%")[0] for entry in entries))


def _may_connect(address: str, named: bool) -> bool:
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped:
        ip = ip.ipv4_mapped
    # At a link-local address, cloud machines hand out their own credentials.
    if ip.is_link_local or ip.is_multicast or ip.is_unspecified:
        return False
    return named or ip.is_global
