"""Hosts from which images may be fetched, and the ways to them.

Annotators and imports write task data: without these checks, a task that names an address inside
the network would have this backend fetch it and show it.
"""

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx2

from backend.errors import ImageSourceError, SettingsError
from backend.label_studio.deadline import Deadline

_SETTING = "MEDSAM3_ALLOWED_IMAGE_HOSTS"
_MOST_SHOWN = 100
_NO_BRACKETS = str.maketrans("", "", "[]")
DEFAULT_PORTS = {"http": 80, "https": 443}


def shown(url: str) -> str:
    """Scheme, host and port: what a message may show of a URL that may carry credentials."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2].lower()
    return f"{parts.scheme}://{host[:_MOST_SHOWN]}"


def is_this_machine(url: str) -> bool:
    """Whether a URL's host is a name or an address of the machine itself."""
    host = (urlsplit(url).hostname or "").rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


@dataclass(frozen=True)
class ImageHosts:
    """The hosts beside Label Studio's own.

    Attributes:
        allowed: `host`, `host:port` or `*.domain`. A host that is named in full may have a
            private address; one that only fits a pattern may not.
    """

    allowed: tuple[str, ...]

    def addresses(
        self, url: httpx2.URL, *, vouched: bool = False, timeout_s: float = 10.0
    ) -> list[str]:
        """Check a URL and return the IP addresses that a connection to it may use.

        Args:
            url: of an image.
            vouched: Label Studio itself redirected here (a signed link to cloud storage), so the
                host need not be listed as long as its address is a public one.
            timeout_s: for looking the name up.

        Returns:
            None of them where only a proxy can look the name up.

        Raises:
            ImageSourceError: another scheme, a host that is not allowed or does not resolve, or
                an address that its host may not have.
        """
        if not 0 < (url.port or 80) < 65536:
            raise ImageSourceError("it is not a valid address")
        if url.scheme not in ("http", "https") or not url.host:
            raise ImageSourceError(f"{url.scheme or 'an empty'}: is not a way to fetch an image")
        named = self._is_named(url)
        if not (named or vouched or self._fits_pattern(url)):
            raise ImageSourceError(
                f"images may not be fetched from {shown(str(url))}: add the host to {_SETTING}"
            )
        addresses = _resolve(url, timeout_s)
        if not addresses and proxy_for(url) is None:
            raise ImageSourceError(f"the host of {shown(str(url))} is not known")
        for address in addresses:
            if not _may_connect(address, named):
                private = f"the address {address} inside a private network"
                if named:
                    private += ", from which no image may be fetched"
                else:
                    private += f": where that is meant, name the host itself in {_SETTING}"
                raise ImageSourceError(f"{shown(str(url))} leads to {private}")
        return addresses

    def _is_named(self, url: httpx2.URL) -> bool:
        port = url.port or DEFAULT_PORTS.get(url.scheme)
        names = {_ascii_host(url), f"{_ascii_host(url)}:{port}"}
        return any(entry.lower().translate(_NO_BRACKETS) in names for entry in self.allowed)

    def includes(self, url: httpx2.URL) -> bool:
        """Whether a URL's host is one of them, whatever its address is."""
        return self._is_named(url) or self._fits_pattern(url)

    def _fits_pattern(self, url: httpx2.URL) -> bool:
        host = _ascii_host(url)
        return any(
            host.endswith(entry[1:].lower()) for entry in self.allowed if entry.startswith("*.")
        )


@contextmanager
def open_foreign(
    url: httpx2.URL, addresses: list[str], deadline: Deadline
) -> Iterator[httpx2.Response]:
    """GET `url` from one of the checked `addresses`; no credentials, no redirects followed.

    The connection goes to the address that was checked, not to the name, because a second look-up
    could give another answer. TLS still verifies the certificate of the name. A proxy that the
    environment names is given the name: it knows the way, and looks the name up itself.

    Raises:
        httpx2.TransportError: no address could be reached in time.
    """
    proxy = proxy_for(url)
    with open_client(
        deadline.remaining_s(),
        proxy=proxy,
        follow_redirects=False,
        trust_env=False,
        verify=_tls(),
    ) as client:
        # A name may have addresses that this machine has no way to (IPv6): the next one is tried.
        targets = [url.host] if proxy else addresses
        for index, target in enumerate(targets):
            request = client.build_request(
                "GET",
                url.copy_with(host=target, username=None, password=None, fragment=None),
                headers={"Host": url.netloc.decode("ascii"), "Accept-Encoding": "identity"},
                extensions={"sni_hostname": _ascii_host(url), **deadline.extensions},
            )
            try:
                response = client.send(request, stream=True)
            except httpx2.ConnectError:
                if index == len(targets) - 1:
                    raise
                deadline.remaining_s()
                continue
            try:
                yield response
            finally:
                response.close()
            return


def open_client(timeout_s: float, **options: Any) -> httpx2.Client:
    """An HTTP client whose connections are made within ten seconds.

    Raises:
        SettingsError: the proxy that the environment names cannot be used.
    """
    try:
        timeout = httpx2.Timeout(timeout_s, connect=min(timeout_s, 10.0))
        if "verify" not in options:
            options["verify"] = _tls(trust_env=bool(options.get("trust_env", True)))
        return httpx2.Client(timeout=timeout, **options)
    except (ImportError, ValueError, httpx2.InvalidURL) as error:
        raise SettingsError(
            "The proxy in HTTPS_PROXY, HTTP_PROXY or ALL_PROXY cannot be used: give an address "
            "such as http://proxy.example.org:3128 (SOCKS is not supported)."
        ) from error


def proxy_for(url: httpx2.URL) -> str | None:
    """The proxy that the environment names for a URL (`HTTPS_PROXY`, `NO_PROXY` and so on)."""
    proxies = getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    host = f"{_ascii_host(url)}:{url.port or DEFAULT_PORTS.get(url.scheme)}"
    if not proxy or proxy_bypass(host):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


@lru_cache(maxsize=2)
def _tls(*, trust_env: bool = True) -> ssl.SSLContext:
    # Reading the certificates takes longer than many an image, and than a job that pushes a few.
    return httpx2.create_ssl_context(trust_env=trust_env)


def _ascii_host(url: httpx2.URL) -> str:
    return url.raw_host.decode("ascii").lower().rstrip(".")


def _resolve(url: httpx2.URL, timeout_s: float) -> list[str]:
    """The addresses of a URL's host; empty where its name is not known in that time."""
    port = url.port or DEFAULT_PORTS.get(url.scheme)
    found: list[str] = []

    def look_up() -> None:
        with suppress(OSError, UnicodeError):
            entries = socket.getaddrinfo(_ascii_host(url), port, type=socket.SOCK_STREAM)
            found.extend(str(entry[4][0]).partition("%")[0] for entry in entries)

    # A look-up cannot be interrupted, only left alone.
    thread = threading.Thread(target=look_up, daemon=True)
    thread.start()
    thread.join(timeout_s)
    return list(dict.fromkeys(found))


# At these, cloud machines hand out their own credentials, as they do at link-local ones.
_METADATA = frozenset(
    map(ip_address, ("fd00:ec2::254", "100.100.100.200", "168.63.129.16", "192.0.0.192"))
)
_GLOBAL_IPV6 = ip_network("2000::/3")
# Parts of it that lead elsewhere: protocol assignments with Teredo, documentation, 6to4, 6bone.
_SPECIAL = tuple(
    map(
        ip_network,
        ("2001::/23", "2001:db8::/32", "2002::/16", "3ffe::/16", "3fff::/20", "192.88.99.0/24"),
    )
)
_NAT64 = ip_network("64:ff9b::/96")
# IPv4 addresses inside IPv6 ones: network, and how far from the right the four bytes end.
_EMBEDDED = (
    (ip_network("::/96"), 0),  # deprecated
    (ip_network("::ffff:0:0/96"), 0),  # mapped
    (ip_network("::ffff:0:0:0/96"), 0),  # translated
    (_NAT64, 0),
    (ip_network("64:ff9b:1::/48"), 0),  # NAT64 of a network's own
    (ip_network("2002::/16"), 80),  # 6to4
)
_ISATAP = 0x5EFE


def _may_connect(address: str, named: bool) -> bool:
    """Whether a host may have an address: a public one, or, if it is named, a private one."""
    ip = ip_address(address)
    behind = [ip, *_ipv4_behind(ip)]
    if any(
        one.is_link_local or one.is_multicast or one.is_unspecified or one in _METADATA
        for one in behind
    ):
        return False
    return named or _is_public(ip)


def _is_public(ip: IPv4Address | IPv6Address) -> bool:
    if any(ip in network for network in _SPECIAL):
        return False
    if isinstance(ip, IPv4Address):
        return ip.is_global
    if ip.ipv4_mapped or ip in _NAT64:
        # The latter is how networks without IPv4 reach the rest of the world.
        return all(_is_public(inner) for inner in _ipv4_behind(ip))
    isatap = int(ip) >> 32 & 0xFFFF == _ISATAP
    return ip in _GLOBAL_IPV6 and ip.is_global and not isatap


def _ipv4_behind(ip: IPv4Address | IPv6Address) -> list[IPv4Address]:
    """The IPv4 addresses that a packet to an IPv6 address may end at."""
    if isinstance(ip, IPv4Address):
        return []
    number = int(ip)
    found = [number >> shift for network, shift in _EMBEDDED if ip in network]
    if ip.teredo:
        found += map(int, ip.teredo)
    if number >> 32 & 0xFFFF == _ISATAP:
        found.append(number)
    return [IPv4Address(inner & 0xFFFFFFFF) for inner in found]
