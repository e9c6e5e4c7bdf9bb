"""What may be said about a URL, and whether two of them lead to the same server."""

from urllib.parse import urlsplit


def origin(url: str) -> tuple[str, str, int | None]:
    """Scheme, lower-case host and port (the scheme's own where none is given)."""
    parts = urlsplit(url)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or default_port(parts.scheme)


def default_port(scheme: str) -> int | None:
    """80 for http, 443 for https."""
    return {"http": 80, "https": 443}.get(scheme)


def shown(url: str) -> str:
    """Scheme, host and port: what may appear in a message of a URL that may carry credentials."""
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname or ''}{port}"
