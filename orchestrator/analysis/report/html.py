"""HTML by construction: what is not :class:`Html` already is escaped, so that no text of a user is markup."""

from __future__ import annotations

import html
import json
from typing import Any
from urllib.parse import urlsplit

_VOID = frozenset({"br", "col", "meta"})
_SCHEMES = frozenset({"http", "https"})


class Html(str):
    """Text that is HTML. Only this module makes it from other text."""

    __slots__ = ()


Child = str | None


def text(value: str) -> Html:
    """The text as HTML shows it, in content and in attributes."""
    return Html(html.escape(value, quote=True))


def join(*children: Child) -> Html:
    """One after the other; None is nothing."""
    return Html("".join(c if isinstance(c, Html) else text(c) for c in children if c is not None))


def el(tag: str, *children: Child, **attributes: str | int | bool | None) -> Html:
    """An element. `class_` is its class, `data_sort` its `data-sort`; None and False leave an attribute out.

    Tags and names of attributes must not come from users.
    """
    written = "".join(_attribute(name, value) for name, value in attributes.items())
    if tag in _VOID:
        return Html(f"<{tag}{written}>")
    return Html(f"<{tag}{written}>{join(*children)}</{tag}>")


def _attribute(name: str, value: str | int | bool | None) -> str:
    if value is None or value is False:
        return ""
    name = name.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{text(str(value))}"'


def link(address: str, *children: Child) -> Html:
    """A link to a web page; only its text where the address is none of the web."""
    try:
        scheme = urlsplit(address).scheme
    except ValueError:
        scheme = ""
    if scheme not in _SCHEMES:
        return join(*children)
    return el("a", *children, href=address, rel="noreferrer noopener", target="_blank")


def data_block(element: str, value: Any) -> Html:
    """Data for the page's program, as JSON that no text in it can leave."""
    written = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        written = written.replace(character, f"\\u{ord(character):04x}")
    return Html(f'<script type="application/json" id="{text(element)}">{written}</script>')


def program(source: str) -> Html:
    """A script of our own, never of a user; ValueError where it could end its element early."""
    lowered = source.lower()
    if "</script" in lowered or "<!--" in lowered:
        raise ValueError("a script must not hold an end tag or the beginning of a comment")
    return Html(f"<script>{source}</script>")
