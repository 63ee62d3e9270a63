"""The page at `/`: paste a prompt and answers, see how they rank and what the reward looks at.

One HTML file that needs no network but its own server: style and script stand inside, and a content
security policy lets nothing else run, named by the hashes of these two. The script talks to
`/v1/models`, `/v1/reward` and `/v1/sample`; texts of strangers only ever become text nodes.
"""

import base64
import hashlib
import json
from functools import cache
from importlib.resources import files

from retrm.page_style import (
    BAR_STYLE,
    HEAT_COLOURS,
    HEAT_LEVELS,
    HEAT_REACH_QUANTILE,
    HEAT_STRENGTH,
    HEAT_WORDS,
    STYLE,
    heat_style,
)

MOST_ANSWERS = 16
"""That are drawn for one question; `sampling` refuses more, the page does not offer it."""
MOST_NEW_TOKENS = 256
"""Of one drawn answer."""

SCRIPTS = ("parts", "server", "link", "heat", "running", "layers", "objectives", "answers", "page")
"""Files of the script, in the order in which they are joined; one concept each."""


@cache
def page(*, has_sampling: bool = True) -> str:
    """The whole page as text.

    Args:
        has_sampling: whether answers can be drawn on this server; else the page does not offer it.
    """
    style = STYLE + heat_style() + BAR_STYLE + _text("page.css")
    facts = {
        "levels": HEAT_LEVELS,
        "quantile": HEAT_REACH_QUANTILE,
        "strength": HEAT_STRENGTH,
        "colours": HEAT_COLOURS,
        "adds": HEAT_WORDS,
        "hasSampling": has_sampling,
        "mostAnswers": MOST_ANSWERS,
        "mostNewTokens": MOST_NEW_TOKENS,
    }
    parts = "\n".join(_text(f"{name}.js") for name in SCRIPTS)
    script = f'(() => {{\n"use strict";\nconst FACTS = {json.dumps(facts)};\n{parts}\n}})();\n'
    assert "</" not in script, "a closing tag in the script would end it"
    return (
        _text("page.html")
        .replace("{policy}", _policy(style, script))
        .replace("{style}", style)
        .replace("{script}", script)
    )


def _text(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """Content security policy: this style, this script, requests to this server, and nothing else."""
    return (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
