"""Read a simple request with a regular expression instead of the HTTP parser, so that refusing it costs less.

A simple request is complete and alone in the received bytes, and the connection stays open after its response. It has
no `Transfer-Encoding`, no `Expect`, no `Upgrade`, and no field of `SIMPLE_FIELDS` twice. All other requests are left to
the parser, also malformed ones.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote

# A path and a query of RFC 3986. A field's name is a token of RFC 9110, its value visible characters, spaces and tabs.
_HEAD = re.compile(
    rb"(GET|POST|PUT|PATCH|DELETE) (/(?!/)[-\w.~!$&'()*+,;=:@%/]*+)(?:\?[-\w.~!$&'()*+,;=:@%/?]*+)? HTTP/1\.1\r\n"
    rb"((?:[-\w!#$%&'*+.^`|~]++:[\t -~\x80-\xff]*+\r\n)*+)\r\n"
)
_FIELDS = re.compile(
    rb"^(connection|content-length|expect|origin|transfer-encoding|upgrade|x-request-id):([^\r]*)",
    re.IGNORECASE | re.MULTILINE,
)
SIMPLE_FIELDS = {b"connection", b"content-length", b"origin", b"x-request-id"}
MAX_DIGITS = 15  # of a length


def simple_request(data: bytes) -> dict[str, Any] | None:
    """Return method, path and headers as in an ASGI scope; None if `data` is not one simple request.

    The headers are those that decide about a refusal (`SIMPLE_FIELDS`), no others.
    """
    head = _HEAD.match(data)
    if head is None:
        return None
    method, path, lines = head.groups()
    headers = [(name.lower(), value.lstrip(b" \t")) for name, value in _FIELDS.findall(lines)]
    fields = dict(headers)
    if len(fields) < len(headers) or not fields.keys() <= SIMPLE_FIELDS:
        return None
    length = fields.get(b"content-length", b"0")
    if not length.isdigit() or len(length) > MAX_DIGITS or head.end() + int(length) != len(data):
        return None
    if fields.get(b"connection", b"keep-alive").lower() != b"keep-alive":
        return None
    return {"method": method.decode(), "path": unquote(path.decode()), "headers": headers}
