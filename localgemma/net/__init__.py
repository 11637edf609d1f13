"""The only place that opens a connection, and keeps the offline promise: `require_online` runs before every request."""

from localgemma.errors import Interrupted
from localgemma.net.http import Reply, get, require_online, retry_after
from localgemma.net.picture import fetch_picture, is_loopback_name
from localgemma.net.post import Answer, post

__all__ = [
    "Answer", "Interrupted", "Reply", "fetch_picture", "get", "is_loopback_name", "post", "require_online", "retry_after",
]  # fmt: skip
