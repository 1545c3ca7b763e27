"""The sign-in and consent pages, and a member without a browser who fills them in."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from html import escape
from html.parser import HTMLParser
from urllib.parse import urljoin, urlsplit

from tokenkeeper.testing.messages import Request, Response

Send = Callable[[Request], Response]

_PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title></head>
<body><h1>{title}</h1><form method="post">{fields}</form></body></html>
"""


def sign_in_page(query: str, hint: str) -> Response:
    """The first page: who are you?"""
    fields = f'{_hidden("request", query)}<label>Member <input name="member" value="{escape(hint)}"></label>'
    return _page("Sign in", fields + '<button name="step" value="sign-in">Sign in</button>')


def consent_page(query: str, member: str, scopes: Iterable[str], client_id: str) -> Response:
    """The second page: may this client do that?"""
    listed = "".join(
        f'<li><label><input type="checkbox" name="grant" value="{escape(scope)}" checked>{escape(scope)}</label></li>'
        for scope in scopes
    )
    fields = (
        f"{_hidden('request', query)}{_hidden('member', member)}"
        f"<p>{escape(member)}, {escape(client_id)} asks for:</p><ul>{listed}</ul>"
        '<button name="step" value="allow">Allow</button><button name="step" value="deny">Deny</button>'
    )
    return _page("Allow access?", fields)


def error_page(message: str) -> Response:
    """A page that sends nobody anywhere: the client or its redirect URI is unknown (RFC 6749 section 4.1.2.1)."""
    return _page("Something is wrong with this link", f"<p>{escape(message)}</p>", status=400)


def _page(title: str, fields: str, status: int = 200) -> Response:
    body = _PAGE.format(title=escape(title), fields=fields).encode()
    return Response(status, (("Content-Type", "text/html; charset=utf-8"), ("Cache-Control", "no-store")), body)


def _hidden(name: str, value: str) -> str:
    return f'<input type="hidden" name="{escape(name)}" value="{escape(value)}">'


class _Form(HTMLParser):
    """Reads hidden fields, checkboxes and buttons out of a page."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.hidden: dict[str, str] = {}
        self.boxes: list[str] = []
        self.steps: list[str] = []
        self.feed(page.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if tag == "button":
            self.steps.append(values["value"])
        elif tag == "input" and values.get("type") == "hidden":
            self.hidden[values["name"]] = values["value"]
        elif tag == "input" and values.get("type") == "checkbox":
            self.boxes.append(values["value"])


def walk(send: Send, url: str, *, member: str, approve: bool, scopes: Iterable[str] | None) -> str:
    """Sign in and answer the consent page; return the callback URL. Raises ValueError at an error page."""
    request = Request("GET", url)
    for _ in range(5):
        response = send(request)
        location = response.header("location")
        if location is not None:
            return urljoin(url, location)
        if response.status != 200:
            raise ValueError(f"the authorization page answered {response.status}: {_text(response)}")
        form = _Form(response.body)
        fields = {"member": member, **form.hidden}
        if "sign-in" in form.steps:
            fields["step"] = "sign-in"
        else:
            fields["step"] = "allow" if approve else "deny"
            fields["grant"] = " ".join(box for box in form.boxes if scopes is None or box in set(scopes))
        request = Request.form(url.partition("?")[0], fields)
    raise ValueError(f"{urlsplit(url).path} goes on asking")


def _text(response: Response) -> str:
    """What an error page says, without its tags."""
    words = re.sub(r"<[^>]*>", " ", response.body.decode("utf-8", "replace"))
    return " ".join(words.split())[:300]
