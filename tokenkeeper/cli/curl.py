"""Reads what ``curl -i`` prints. Pure: bytes in, an answer out; it never fails but for want of a status line."""

from __future__ import annotations

import re

from tokenkeeper.model import Answer

_STATUS_LINE = re.compile(rb"HTTP/\d(?:\.\d)? (\d{3})(?: [^\r\n]*)?\r?(?:\n|\Z)")
_END_OF_HEADERS = re.compile(rb"\r?\n\r?(?:\n|\Z)|\Z")


def parse(text: bytes) -> Answer | None:
    """Return the answer in *text*, or None if it has no status line.

    Where there are several blocks of headers (100 Continue, a proxy's 200, redirects that were followed) the last one
    counts. Line ends may be CRLF or LF; a body of blanks only is empty.
    """
    text = text.removeprefix(b"\xef\xbb\xbf").lstrip()
    answer = None
    while match := _STATUS_LINE.match(text):
        end = _END_OF_HEADERS.search(text, match.end() - 1)
        stop, rest = (end.start(), end.end()) if end else (len(text), len(text))
        answer = Answer(int(match[1]), _headers(text[match.end() : stop]), None)
        text = text[rest:]
    if answer is None:
        return None
    return Answer(answer.status, answer.headers, text if text.strip() else b"")


def _headers(block: bytes) -> tuple[tuple[str, str], ...]:
    headers: list[tuple[str, str]] = []
    for line in block.decode("latin-1").splitlines():
        name, colon, value = line.partition(":")
        if line[:1] in {" ", "\t"} and headers:
            # RFC 9112 section 5.2: a folded line continues the value before it.
            headers[-1] = (headers[-1][0], f"{headers[-1][1]} {line.strip()}")
        elif colon:
            headers.append((name.strip().lower(), value.strip()))
    return tuple(headers)
