"""Label Studio from the outside: its API, its images, a server of it for demo and tests."""

import logging

# The HTTP client logs whole addresses, and signed links are passwords; below it, headers are.
for _client in ("httpx", "httpx2", "httpcore", "httpcore2"):
    logging.getLogger(_client).setLevel(logging.WARNING)
