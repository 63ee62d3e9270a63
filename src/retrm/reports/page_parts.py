"""What every page is made of: one HTML file that needs nothing else, no script, no request, no network.

All text from outside is escaped by whoever puts it in, and a content security policy forbids the page
to load or run anything.
"""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from retrm.page_style import STYLE
from retrm.reports.words import NONE, is_number

CSS_PIXELS = 0.56
"""Of the page for one of a picture: letters of all pictures have one size, whatever their width."""


def document(title: str, sections: Sequence[str], *, style: str = "") -> str:
    """The page as text; empty sections are left out.

    Args:
        title: plain text.
        sections: HTML.
        style: of this page alone, behind that of all pages.
    """
    return (
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "img-src data:; style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{STYLE}{style}</style></head>"
        f"<body><main>\n{''.join(f'{part}{chr(10)}' for part in sections if part)}"
        "</main></body></html>\n"
    )


def image(png: bytes, words: str) -> str:
    """A picture inside the page; `words` stand for it where it cannot be seen."""
    data = base64.b64encode(png).decode("ascii")
    width, height = (round(pixels * CSS_PIXELS) for pixels in _size(png))
    return (
        f'<img alt="{escape(words)}" width={width} '
        f'height={height} src="data:image/png;base64,{data}">'
    )


def _size(png: bytes) -> tuple[int, int]:
    """Width and height in pixels, which open the header of every PNG file."""
    return int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")


def fact_rows(values: Mapping[str, Any]) -> str:
    """Lines of a table, one a fact; nested names are joined by a dot."""
    return "".join(
        f"<tr><th scope=row>{escape(name)}</th><td>{escape(plain(value))}</td></tr>"
        for name, value in flat(values).items()
    )


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested names joined by a dot."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def plain(value: Any) -> str:
    """A recorded value as a person reads it."""
    if isinstance(value, list | tuple):
        return ", ".join(plain(part) for part in value) or NONE
    if value is None or (isinstance(value, float) and not is_number(value)):
        return NONE
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)


def link(name: str) -> str:
    """To a file beside the page."""
    return f'<a href="{escape(name)}">{escape(name)}</a>'
