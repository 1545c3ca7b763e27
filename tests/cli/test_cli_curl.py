"""What ``curl -i`` prints, in all the forms that people paste it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenkeeper.cli.curl import parse

BODY = b'{"message": "expired"}'


@pytest.mark.parametrize(
    ("text", "status", "headers", "body"),
    [
        (b"HTTP/1.1 401 Unauthorized\r\nA: 1\r\n\r\n" + BODY, 401, (("a", "1"),), BODY),
        (b"HTTP/2 401 \r\na: 1\r\n\r\n" + BODY, 401, (("a", "1"),), BODY),
        (b"HTTP/3 401\n\n" + BODY, 401, (), BODY),
        (b"HTTP/1.1 401 Unauthorized\na: 1\n\n" + BODY + b"\n", 401, (("a", "1"),), BODY + b"\n"),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 401 No\r\na: 1\r\n\r\n" + BODY, 401, (("a", "1"),), BODY),
        (b"HTTP/1.1 200 Connection established\r\n\r\nHTTP/2 403 \r\n\r\n" + BODY, 403, (), BODY),
        (b"HTTP/1.1 302 Found\r\nlocation: /x\r\n\r\nHTTP/1.1 401 No\r\nb: 2\r\n\r\n", 401, (("b", "2"),), b""),
        (b"HTTP/1.1 401 No\r\nLink: A\r\nlink: B\r\n\r\n", 401, (("link", "A"), ("link", "B")), b""),
        (b"HTTP/1.1 401 No\r\na: 1\r\n\t2\r\nno colon\r\n\r\n", 401, (("a", "1 2"),), b""),
        (b"HTTP/1.1 401 No\r\na: x: y\r\n\r\n", 401, (("a", "x: y"),), b""),
        (b"\xef\xbb\xbf\r\n\nHTTP/1.0 500\n\nbroken", 500, (), b"broken"),
        (b"HTTP/1.1 204 No Content\r\na: 1", 204, (("a", "1"),), b""),
        (b"HTTP/1.1 204 No Content", 204, (), b""),
        (b"HTTP/1.1 401 No\r\n\r\n \r\n", 401, (), b""),
        (b"HTTP/1.1 401 No\r\na: \xe9\r\n\r\n\xff\x00", 401, (("a", "\xe9"),), b"\xff\x00"),
        (b"HTTP/1.1 401 No\r\n\r\nHTTP/1.1 is a protocol", 401, (), b"HTTP/1.1 is a protocol"),
    ],
)  # fmt: skip
def test_answers_are_read(text: bytes, status: int, headers: tuple[tuple[str, str], ...], body: bytes) -> None:
    """The last block of headers counts, line ends may be either, and a body of blanks is empty."""
    answer = parse(text)
    assert answer is not None
    assert (answer.status, answer.headers, answer.body) == (status, headers, body)


@pytest.mark.parametrize(
    "text", [b"", b'{"message": "expired"}', b"HTTP/1.1 forty", b"curl: (6) Could not resolve host"]
)
def test_what_is_no_answer_is_none(text: bytes) -> None:
    """Without a status line there is nothing to read."""
    assert parse(text) is None


@given(st.binary(max_size=300).map(lambda rest: b"HTTP/2 401 \r\n" + rest))
def test_nothing_behind_a_status_line_is_an_error(text: bytes) -> None:
    """Whatever follows a status line is read as something."""
    answer = parse(text)
    assert answer is not None
    assert isinstance(answer.body, bytes)
    assert all(name == name.strip().lower() for name, _ in answer.headers)
