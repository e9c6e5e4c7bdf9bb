"""The addresses of one Label Studio: where it is asked, and how else tasks may call it.

A link that carries one of the other addresses leads to the same files, so it is asked for at the
first address, and the token goes nowhere else.
"""

import re
from dataclasses import dataclass
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from backend.errors import ImageSourceError
from backend.label_studio.hosts import DEFAULT_PORTS, is_this_machine

# What Label Studio writes into tasks, whatever it is installed below.
_LINK = re.compile(
    r"/(data/(upload|local-files)|storage-data|(tasks|projects)/[0-9]+/(resolve|presign))(/|$)"
)

# Servers in between read these in ways of their own.
_ODD = re.compile(r"[\\\x00-\x1f\x7f]")


def is_link(path: str) -> bool:
    """Whether a path looks like one that Label Studio itself wrote into a task."""
    return _LINK.search(path) is not None


@dataclass(frozen=True)
class OwnAddresses:
    """One Label Studio's addresses, `http(s)://host[:port][/prefix]` each.

    Attributes:
        url: where it is asked.
        others: public and internal names; a host without a scheme serves both.
        public: the one that it was found to write into links; empty: not known.
    """

    url: str
    others: tuple[str, ...] = ()
    public: str = ""

    def path_of(self, reference: str) -> str | None:
        """Path and query of a link as Label Studio without a prefix would have them.

        Returns:
            None where the link leads elsewhere.
        """
        if reference.startswith("/") and not reference.startswith("//"):
            return _below(reference, urlsplit(self.url).path)
        try:
            wanted = urlsplit(reference)
            for address in filter(None, (self.url, *self.others, self.public)):
                known = urlsplit(address if "://" in address else f"http://{address}")
                if _place(known) == _place(wanted):
                    query = f"?{wanted.query}" if wanted.query else ""
                    return _below(wanted.path or "/", known.path) + query
        except ValueError:  # a port or an address in brackets that is none
            return None
        return None


def check_path(path: str, *, task_id: int | None, project_id: int | None) -> None:
    """Whether the token may go along to a path that a task names.

    It may to uploads of the task's own project, to files that Label Studio serves, and to the
    links that it makes for the task itself; other paths answer with what the token's user may see
    and the task's author may not.

    Raises:
        ImageSourceError: it may not.
    """
    parts = urlsplit(path)
    plain = _decoded(parts.path)
    files = [_decoded(file) for file in parse_qs(parts.query).get("filepath", [])]
    if any(map(_leads_astray, [plain, *(f"/{file.removeprefix('/')}" for file in files)])):
        raise ImageSourceError("its path leads through others")
    made = re.fullmatch(r"/(tasks|projects)/([0-9]+)/(resolve|presign)/?", plain)
    if made is not None:
        own = task_id if made[1] == "tasks" else project_id
        if int(made[2]) != own:
            raise ImageSourceError("it is a link of another task or project")
        return
    if not plain.startswith(("/data/", "/storage-data/")):
        raise ImageSourceError(
            "it is a page of Label Studio and no image: tasks may name uploads (/data/upload/...), "
            "local files (/data/local-files/?d=...) and objects in the project's cloud storage"
        )
    for file in (plain.removeprefix("/data/"), *files):
        upload = re.match(r"/?upload/([0-9]+)/", file)
        if upload is not None and project_id and int(upload[1]) != project_id:
            raise ImageSourceError(
                f"it is an upload of project {upload[1]}, and this task is in project "
                f"{project_id}: upload the image to this project"
            )


def _leads_astray(path: str) -> bool:
    """Whether servers may read a path in different ways."""
    names = path.split("/")[1:]
    odd = _ODD.search(path) is not None or unquote(path) != path
    return odd or bool({".", ".."} & set(names)) or "" in names[:-1]


def _decoded(text: str) -> str:
    """Decoded until only what was encoded on purpose to hide something is left encoded."""
    for _ in range(3):
        text = unquote(text)
    return text


def _below(path: str, prefix: str) -> str:
    """A path without the prefix below which Label Studio is installed."""
    prefix = prefix.rstrip("/")
    return path.removeprefix(prefix) if path.startswith(f"{prefix}/") else path


def _place(parts: SplitResult) -> tuple[str, int | None]:
    """Host and port, equal where they lead to the same server.

    The machine itself has several names. A server at the usual ports has both: one leads to the
    other, or a proxy in front takes TLS off.
    """
    host = (parts.hostname or "").rstrip(".")
    port = parts.port or DEFAULT_PORTS.get(parts.scheme)
    here = is_this_machine(parts.geturl())
    return "localhost" if here else host, 443 if port == 80 else port
