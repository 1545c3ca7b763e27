"""A member at a browser: follows redirects, reads the server's own pages, fills in forms and presses buttons."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser
from types import TracebackType
from typing import Self
from urllib.parse import urljoin

import httpx2
from interop_servers import PLAIN

ALLOW = ("Continue", "Authorize")
DENY = ("Cancel",)


@dataclass
class Form:
    """A form: what it would send, where and how, and its buttons (text -> name and value)."""

    action: str
    method: str
    fields: dict[str, str] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)
    buttons: dict[str, tuple[str, str]] = field(default_factory=dict)


class Page(HTMLParser):
    """The forms and links of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.forms: list[Form] = []
        self.links: dict[str, str] = {}
        self._link: str | None = None
        self._button: dict[str, str] | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "form":
            self.forms.append(Form(given.get("action", ""), given.get("method", "get").lower()))
        elif tag == "a":
            self._link = given.get("href")
        elif self.forms and tag == "button":
            self._button = given
        elif self.forms and tag == "input":
            name, kind = given.get("name", ""), given.get("type", "text")
            if kind == "submit":
                self.forms[-1].buttons[given.get("value", "Submit")] = (name, given.get("value", ""))
            elif name:
                self.forms[-1].fields[name] = given.get("value", "")
                self.forms[-1].types[name] = kind

    def handle_data(self, data: str) -> None:
        text = data.strip()
        if text and self._link is not None:
            self.links[text] = self._link
        elif text and self._button is not None:
            self.forms[-1].buttons[text] = (self._button.get("name", ""), self._button.get("value", ""))

    def handle_endtag(self, tag: str) -> None:
        if tag == "a":
            self._link = None
        elif tag == "button":
            self._button = None


class Browser:
    """A member with an account at a server, and a browser with its own cookies."""

    def __init__(self, account: str, password: str = "password of the interop tests") -> None:
        self.account = account
        self.password = password
        self.seen: list[str] = []
        """The titles of what the member was asked: 'sign in' or 'consent'."""
        self._http = httpx2.Client(verify=PLAIN, timeout=30)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def authorize(self, url: str, redirect_uri: str, *, approve: bool = True) -> str:
        """Go where the host sends the member, sign in, answer the consent page; the URL that leads back to the host."""
        response = self._http.get(url)
        for _ in range(20):
            if response.is_redirect:
                target = urljoin(str(response.url), response.headers["location"])
                if target.startswith(f"{redirect_uri}?"):
                    return target
                response = self._http.get(target)
            else:
                response = self._answer(response, approve=approve)
        raise AssertionError(f"{response.url} goes on asking")

    def open(self, url: str) -> Page:
        """Look at a page, signing in where that is asked for."""
        response = self._http.get(url)
        for _ in range(10):
            if response.is_redirect:
                response = self._http.get(urljoin(str(response.url), response.headers["location"]))
            elif any("password" in form.types.values() for form in _page(response).forms):
                response = self._answer(response, approve=True)
            else:
                return _page(response)
        raise AssertionError(f"{url} goes on asking")

    def press(self, url: str, button: str) -> None:
        """Open a page and press one of its buttons."""
        page = self.open(url)
        form = next(form for form in page.forms if button in form.buttons)
        assert self._send(url, form, button).status_code < 400

    def _answer(self, response: httpx2.Response, *, approve: bool) -> httpx2.Response:
        """Fill in the page: sign in, or allow or deny."""
        page, here = _page(response), str(response.url)
        for form in page.forms:
            if "password" in form.types.values():
                self.seen.append("sign in")
                text = next(name for name, kind in form.types.items() if kind in ("text", "email"))
                secret = next(name for name, kind in form.types.items() if kind == "password")
                form.fields |= {text: self.account, secret: self.password}
                return self._send(here, form, next(iter(form.buttons)))
        self.seen.append("consent")
        wanted = ALLOW if approve else DENY
        for form in page.forms:
            for button in form.buttons:
                if any(word in button for word in wanted):
                    return self._send(here, form, button)
        link = next((link for text, link in page.links.items() if any(word in text for word in wanted)), None)
        if link is None:
            raise AssertionError(f"{here} has no {' or '.join(wanted)}: {response.text[:2000]}")
        return self._http.get(urljoin(here, link))

    def _send(self, here: str, form: Form, button: str) -> httpx2.Response:
        name, value = form.buttons[button]
        fields = form.fields | ({name: value} if name else {})
        target = urljoin(here, form.action or here)
        if form.method == "get":
            return self._http.get(target, params=fields)
        return self._http.post(target, data=fields, headers={"Referer": here})


def _page(response: httpx2.Response) -> Page:
    assert response.status_code == 200, f"{response.url} answered {response.status_code}: {response.text[:2000]}"
    return Page(response.text)
