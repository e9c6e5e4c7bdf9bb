"""What every process keeps from other users of the machine, and out of its log."""

import logging
import os
import re
import sys

# The query of a signed link is a password, and inline images are pixels. Credentials before a
# host are caught too.
_QUERY = re.compile(r"(?<=[^\s?])\?[^\s\"'<>]*=[^\s\"'<>]*")
_USER = re.compile(r"(?<=://)[^\s/@\"']+@")
_INLINE = re.compile(r"data:[\w.+/-]*(;[\w=.-]+)*,[\w+/=%-]+", re.IGNORECASE)


class PrivateFormatter(logging.Formatter):
    """Lines and tracebacks without queries of URLs, credentials in them, and inline images."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, and what belongs to it."""
        return without_secrets(super().format(record))


def without_secrets(text: str) -> str:
    """A text without what URLs in it may carry."""
    return _INLINE.sub("data:…", _USER.sub("", _QUERY.sub("?…", text)))


def set_up_logging(*, verbose: bool) -> None:
    """Log to standard error: warnings, or (`verbose`) all that happens."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PrivateFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, handlers=[handler])


def keep_files_private() -> None:
    """Let nobody else read the files that this process and its children write."""
    os.umask(0o077)
