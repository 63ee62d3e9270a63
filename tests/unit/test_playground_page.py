"""The page as text: it stands alone, lets nothing else run, and every field has a name."""

import base64
import hashlib
import re

import pytest
from pages import Reader

from retrm.page_style import HEAT_LEVELS
from retrm.service.playground import SCRIPTS, page


@pytest.fixture(scope="module")
def text():
    return page()


def inside(text, tag):
    (found,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    return found


def test_tags_close_in_order_and_it_says_what_it_is_for(text):
    assert "What does the reward model look at?" in Reader(text).text


def test_nothing_is_loaded_from_anywhere(text):
    addresses = set(re.findall(r"https?://[^\s\"'<)]+", text))

    assert addresses == {"http://www.w3.org/2000/svg"}  # the name of a vocabulary, never fetched
    assert not re.search(r"<script[^>]+src|<link[^>]+stylesheet|@import|url\(", text)


def test_the_policy_names_exactly_the_style_and_the_script_that_stand_inside(text):
    def named(part):
        digest = hashlib.sha256(part.encode()).digest()
        return f"'sha256-{base64.b64encode(digest).decode()}'"

    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]+)"', text)
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))

    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == named(inside(text, "script"))
    assert rules["style-src"] == named(inside(text, "style"))
    assert rules["connect-src"] == "'self'"
    assert not re.search(
        r"\son[a-z]+=|\sstyle=|javascript:", text.replace(inside(text, "script"), "")
    )


def test_no_text_can_become_markup_or_code(text):
    script = inside(text, "script")

    for way in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "Function(",
    ):
        assert way not in script
    assert "srcdoc" not in script


def test_every_element_that_the_script_asks_for_is_there_once(text):
    ids = re.findall(r'\sid="([^"]+)"', text)
    asked = set(re.findall(r'\$\("([^"]+)"\)', inside(text, "script"))) - {
        "answer-1"
    }  # it makes this

    assert len(ids) == len(set(ids))
    assert asked <= set(ids)
    assert len(asked) > 20


def test_every_field_has_a_name_for_those_who_cannot_see(text):
    tags = Reader(text).tags
    labelled = {attrs["for"] for tag, attrs in tags if tag == "label" and "for" in attrs}
    wrapped = set(re.findall(r'<label[^>]*>[^<]*<(?:input|select)\s[^>]*?id="([^"]+)"', text))
    fields = [attrs for tag, attrs in tags if tag in ("input", "select", "textarea")]

    for attrs in fields:
        is_radio = attrs.get("type") == "radio"  # these stand in their labels, too
        name = attrs.get("id")
        assert (
            is_radio or name in labelled | wrapped or "aria-label" in attrs or name == "policy"
        ), attrs
    assert len(fields) > 10


def test_it_is_made_of_the_listed_files_in_their_order(text):
    script = inside(text, "script")
    places = [script.index(word) for word in ("const $ =", "class Trouble", "function linkOf")]

    assert places == sorted(places)
    assert SCRIPTS[-1] == "page"  # it begins when all else is there


def test_heat_has_the_shades_of_the_reports(text):
    style = inside(text, "style")

    for name in ("up", "down", "gate"):
        assert all(f".{name}{level}{{" in style for level in range(1, HEAT_LEVELS + 1))
    assert f'"levels": {HEAT_LEVELS}' in inside(text, "script")


def test_a_server_that_draws_no_answers_offers_none(text):
    assert '"hasSampling": true' in text
    assert '"hasSampling": false' in page(has_sampling=False)
