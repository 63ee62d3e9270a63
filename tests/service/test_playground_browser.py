"""The page in a browser, against the real application on a toy backbone, as a person uses it.

Pictures of what was seen lie in the folder `build/screenshots`, or where RETRM_ARTIFACTS says.
"""

import base64
import json
import os
import re
from pathlib import Path

import pytest
from listening import listening
from mixed import mixed_model
from served_page import ELHSR, browser, registry, served

from retrm.records import Answer
from retrm.service.models import Registry
from retrm.service.settings import ServiceSettings

PROMPT = "What is 2 + 2?"
ANSWERS = ["It is 4.", "It is 5, I think.", "No."]
HOSTILE = '<img src=x onerror="window.hurt=1"></script><script>window.hurt=1</script>&lt;b&gt; ${1}'
WAIT_MS = 30_000
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def chromium():
    with browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def address():
    with served() as url:
        yield url


MIXED = mixed_model()
MANY = ("a<b>", *(f"objective {k}" for k in range(1, 12)))


@pytest.fixture(scope="module")
def mixed():
    many = mixed_model(MIXED.backbone, MANY, verbosity=None, seed=4, is_rated=False)
    last = registry().get("last").scorer
    with served(models=Registry.of({"mixed": MIXED, "many": many, "last": last})) as url:
        yield url


@pytest.fixture
def open_page(chromium, request):
    """Opens pages that must neither fail in their script nor ask another server."""
    opened, trouble = [], []

    def opener(url, *, width=1280, height=900, scheme="light"):
        context = chromium.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme
        )
        page = context.new_page()
        page.set_default_timeout(WAIT_MS)
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("request", lambda r: _check_home(r.url, url, trouble))
        page.goto(url)
        opened.append((context, page))
        return page

    yield opener
    for number, (context, page) in enumerate(opened):
        _keep(page, f"{request.node.name}-{number}")
        context.close()
    assert trouble == []


def _check_home(asked, url, trouble):
    home = url.split("#")[0].rstrip("/")
    if not asked.startswith((home, "data:")):
        trouble.append(f"asked {asked}")


def _keep(page, name):
    folder = Path(os.environ.get("RETRM_ARTIFACTS") or ROOT / "build" / "screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=folder / f"{re.sub('[^a-z0-9-]+', '_', name)}.png", full_page=True)


def ready(page):
    page.wait_for_selector("#model-1 option", state="attached")


def write(page, prompt=PROMPT, answers=ANSWERS):
    ready(page)
    page.fill("#prompt", prompt)
    while page.locator("#answers textarea").count() < len(answers):
        page.click("#add")
    for i, text in enumerate(answers, 1):
        page.fill(f"#answer-{i}", text)


def score(page):
    page.click("#score")
    page.wait_for_selector("#results:not([hidden]) .card")
    page.wait_for_selector("#score:enabled")


def card(page, answer, column=0):
    return page.locator(f".column >> nth={column} >> .card[data-answer='{answer}']")


def shown_order(page, column=0):
    cards = page.locator(f".column >> nth={column} >> .card")
    return [int(one.get_attribute("data-answer")) for one in cards.all()]


def figures(words):
    """Numbers of a readout, in order; the page writes a real minus."""
    found = re.findall(r"[+−]?\d+(?:\.\d+)?(?:e[−]?\d+)?", words)
    return [float(one.replace("−", "-")) for one in found]


def test_a_newcomer_sees_ranked_answers_after_one_click(open_page, address):
    page = open_page(address)
    ready(page)
    page.click("#example")
    page.wait_for_selector(".card.best")

    assert page.locator(".card").count() == 3
    assert "first with" in page.text_content("#status")
    assert "raised most by" in page.text_content(".card.best .why").lower()
    assert page.locator(
        ".card.best .tokens span[class*=up], .card.best .tokens span[class*=down]"
    ).count()


def test_ranks_scores_and_tokens_are_those_of_the_model(open_page, address):
    page = open_page(address)
    write(page)
    score(page)
    model = registry().get("gated").scorer
    scores = model.score([Answer.of(PROMPT, text) for text in ANSWERS])

    assert shown_order(page) == (-scores).argsort(kind="stable").tolist()
    for i, text in enumerate(ANSWERS):
        view = model.token_scores(PROMPT, text)
        found = figures(card(page, i).locator(".figure").text_content())
        assert found == [pytest.approx(scores[i], abs=6e-4)]
        assert card(page, i).locator(".tokens span").count() == len(view.tokens)
        card(page, i).locator(".tokens span >> nth=2").hover()
        told = figures(card(page, i).locator(".readout").text_content().split("”", 1)[1])
        expected = [view.contributions[2], view.rewards[2], view.gates[2], view.running[2]]
        assert told == pytest.approx(expected, rel=6e-3, abs=6e-4)


def test_layers_are_shown_where_a_head_adds_them_up_and_their_figures_sum(open_page, address):
    page = open_page(address)
    write(page)
    score(page)
    with page.expect_response(lambda r: r.url.endswith("/v1/reward")) as asked:
        page.check("#layers")
    page.wait_for_selector("canvas")
    best = asked.value.json()["results"][0]
    for token, row in zip(best["token_scores"], best["layer_scores"], strict=True):
        assert sum(row) == pytest.approx(token["reward"], abs=1e-4)

    canvas = card(page, 0).locator("canvas")
    assert ELHSR.layers == "all"
    assert "4 layers by 9 tokens" in canvas.get_attribute("aria-label")
    canvas.focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowDown"):
        page.keyboard.press(key)
    told = card(page, 0).locator(".readout").text_content()
    layer, adds = figures(told.split("layer ")[1])[:2]
    assert layer == 2
    assert adds == pytest.approx(best["layer_scores"][2][2], rel=6e-3, abs=6e-4)


def test_two_models_stand_side_by_side_with_how_they_agree(open_page, address):
    page = open_page(address, width=1500)
    write(page)
    page.select_option("#model-2", "last")
    score(page)
    one, two = (page.locator(f".column >> nth={i}").bounding_box() for i in (0, 1))

    assert one["y"] == two["y"]
    assert one["x"] + one["width"] <= two["x"]
    assert "of 3 pairs of answers in the same order" in page.text_content("#agreement")
    assert "score so far is shown" in page.locator(".column >> nth=1").text_content()
    card(page, 0).locator(".tokens span >> nth=3").hover()
    assert card(page, 0, 1).locator(".tokens .at").get_attribute("data-i") == "3"


def test_a_link_reproduces_the_view_and_sends_nothing_of_it(open_page, address):
    page = open_page(address)
    write(page)
    page.select_option("#model-2", "last")
    score(page)
    page.check("input[value=gate]")
    link = page.url
    seen = []
    again = open_page(address)
    again.on("request", lambda r: seen.append(r.url))
    again.goto("about:blank")
    again.goto(link)
    again.wait_for_selector(".card")

    assert [again.input_value(f"#answer-{i}") for i in (1, 2, 3)] == ANSWERS
    assert again.input_value("#prompt") == PROMPT
    assert again.is_checked("input[value=gate]")
    assert again.input_value("#model-2") == "last"
    assert [shown_order(again, i) for i in (0, 1)] == [shown_order(page, i) for i in (0, 1)]
    assert not any("v1=" in url.split("#")[0] for url in seen)


@pytest.mark.parametrize("prefix", ["/rewards/", "/rewards"])
def test_the_page_works_behind_a_prefix_that_a_proxy_takes_away(open_page, prefix):
    from starlette.responses import Response

    from retrm.service.app import create_app
    from retrm.service.core import Service

    app = create_app(Service(registry()))

    async def proxy(scope, receive, send):
        if scope["type"] == "http" and not scope["path"].startswith("/rewards"):
            await Response("not ours", status_code=404)(scope, receive, send)
            return
        if scope["type"] == "http":
            scope = {**scope, "path": scope["path"].removeprefix("/rewards") or "/"}
        await app(scope, receive, send)

    with listening(proxy) as url:
        page = open_page(url + prefix)
        write(page)
        score(page)
        assert page.locator(".card").count() == len(ANSWERS)


def test_a_link_that_was_cut_says_so(open_page, address):
    page = open_page(f"{address}/#v1=eyJwcm9tcHQ")
    ready(page)
    page.wait_for_function("document.getElementById('status').textContent !== ''")

    assert "cannot be read" in page.text_content("#status")


def test_hostile_texts_stay_text_in_answers_links_and_errors(open_page, address):
    page = open_page(address)
    write(page, HOSTILE, [HOSTILE, HOSTILE[::-1]])
    score(page)
    shown = card(page, 0).locator(".tokens").text_content()
    state = {"prompt": HOSTILE, "answers": [HOSTILE], "models": [HOSTILE], "view": '"]<b>'}
    coded = base64.urlsafe_b64encode(json.dumps(state).encode()).decode().rstrip("=")
    linked = open_page(f"{address}/#v1={coded}")
    linked.wait_for_selector(".card")

    assert shown.startswith(HOSTILE)
    for one in (page, linked):
        assert one.evaluate("window.hurt") is None
        assert one.locator("main img, .tokens script, .card b b").count() == 0
    assert HOSTILE in linked.text_content("#status")


def test_inline_code_that_slips_in_is_stopped_by_the_policy(open_page, address):
    page = open_page(address)
    ready(page)
    page.evaluate("""() => {
        const made = document.createElement("script");
        made.textContent = "window.hurt = 1";
        document.body.append(made);
    }""")

    assert page.evaluate("window.hurt") is None


def test_it_can_be_used_with_keys_alone(open_page, address):
    page = open_page(address)
    ready(page)
    page.focus("#prompt")
    page.keyboard.type(PROMPT)
    page.keyboard.press("Tab")  # remove stands before its box
    page.keyboard.press("Tab")
    page.keyboard.type("It is 4.")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector(".card")
    page.locator(".tokens span >> nth=0").focus()
    for key in ("ArrowRight", "ArrowRight", "End", "ArrowLeft"):
        page.keyboard.press(key)
    at = page.locator(".tokens [aria-selected=true]")

    assert at.count() == 1
    assert at.text_content() == "."
    assert re.match(r"\.: adds .* reward .* gate .* score so far", at.get_attribute("aria-label"))
    assert page.locator(".tokens [tabindex='0']").count() == 1  # one stop for the whole answer


def test_colours_follow_the_system_and_the_switch(open_page, address):
    page = open_page(address, scheme="dark")
    ready(page)
    paper = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(paper)
    page.click("#theme")
    light = page.evaluate(paper)
    page.reload()
    ready(page)

    assert dark == "rgb(21, 24, 27)"
    assert light == "rgb(251, 250, 248)"
    assert page.evaluate(paper) == light  # kept


def test_a_narrow_screen_needs_no_scrolling_sideways(open_page, address):
    page = open_page(address, width=360, height=740)
    write(page)
    page.select_option("#model-2", "last")
    score(page)
    page.check("#layers")
    page.wait_for_selector("canvas")

    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_what_is_too_long_is_refused_in_words_and_cut_where_that_is_chosen(open_page, address):
    page = open_page(address)
    write(page, PROMPT, ["short", "long " * 300])
    page.click("#score")
    page.wait_for_selector("#trouble .verdict")
    refusal = page.text_content("#trouble")
    page.click("#options summary")
    page.select_option("#policy", "truncate_response")
    score(page)

    assert "1024" in refusal
    assert "Options let you cut" in refusal
    assert "of the end of the answer" in card(page, 1).locator(".chips").text_content()
    assert page.text_content("#trouble") == ""


def test_results_are_marked_old_when_the_texts_change(open_page, address):
    page = open_page(address)
    write(page)
    score(page)
    page.fill("#answer-1", "It is 6.")
    is_old = page.locator("#results.old").count()
    score(page)

    assert is_old == 1
    assert page.locator("#results.old").count() == 0


def test_empty_boxes_are_left_out_and_the_others_keep_their_numbers(open_page, address):
    page = open_page(address)
    write(page, PROMPT, ["It is 4.", " ", "No."])
    score(page)

    assert sorted(shown_order(page)) == [0, 2]
    assert "Empty boxes left out: 1." in page.text_content("#status")


def test_a_model_without_tokens_still_ranks(open_page, address):
    page = open_page(address)
    write(page)
    page.select_option("#model-1", "prompt")
    score(page)

    assert page.locator(".card .figure").count() == 3
    assert "does not say how single tokens count" in page.text_content(".column")
    assert card(page, 0).locator(".tokens").text_content() == ANSWERS[0]


def test_the_model_can_answer_itself(open_page, address):
    page = open_page(address)
    ready(page)
    page.fill("#prompt", PROMPT)
    page.click("#sampling summary")
    page.fill("#n", "3")
    page.fill("#length", "8")
    page.click("#sample")
    page.wait_for_selector(".card")

    assert page.locator("#answers textarea").count() == 3


def test_a_key_is_asked_for_kept_for_the_tab_and_not_in_links(open_page):
    with served(token="secret-key", has_sampling=False) as url:
        page = open_page(url)
        page.wait_for_selector("#trouble .verdict")
        asked = page.text_content("#trouble")
        page.fill("#token", "secret-key")
        page.keyboard.press("Tab")
        ready(page)
        write(page)
        score(page)
        page.reload()
        page.wait_for_selector(".card")

        assert "wants a key" in asked
        assert page.input_value("#answer-1") == ANSWERS[0]
        assert "secret" not in page.url
        assert "secret" not in page.evaluate("JSON.stringify(localStorage)")
        assert page.is_hidden("#sampling")


def test_a_full_queue_is_told_with_when_to_come_again(open_page):
    limits = ServiceSettings(max_items=1, max_waiting_items=1)
    with served(settings=limits) as url:
        page = open_page(url)
        # Two requests of one answer each at a time; the queue holds one.
        write(page, PROMPT, ["It is 4."])
        page.route(
            "**/v1/reward",
            lambda route: route.fulfill(
                status=429,
                headers={"Retry-After": "3"},
                content_type="application/json",
                body='{"error": {"message": "1 items are waiting", "code": 429}}',
            ),
        )
        page.click("#score")
        page.wait_for_selector("#trouble .verdict")
        told = page.text_content("#trouble")
        page.unroute("**/v1/reward")
        page.click("#trouble button")
        page.wait_for_selector(".card")

        assert "1 items are waiting" in told
        assert "Try again in 3 seconds." in told
        write(page, PROMPT, ["It is 4.", "No."])
        page.click("#score")
        page.wait_for_selector("#trouble .verdict")
        assert "at most 1" in page.text_content("#trouble")


def test_a_server_that_is_gone_is_told(open_page, chromium):
    with served() as url:
        page = open_page(url)
        write(page)
    page.click("#score")
    page.wait_for_selector("#trouble .verdict")

    assert "cannot be reached" in page.text_content("#trouble")


# ------------------------------------------------------------------------ objectives


def bars(scope):
    """Rows of a table of bars: name, figure, sign of the bar and its width in per cent."""
    found = []
    for row in scope.locator(".bars tbody tr").all():
        fill = row.locator(".track i")
        sign, width = 0, 0.0
        if fill.count():
            sign = 1 if fill.get_attribute("class") == "plus" else -1
            width = float(re.search(r"width: ([\d.e-]+)%", fill.get_attribute("style"))[1])
        found.append(
            (row.locator("th").text_content(), row.locator(".number").text_content(), sign, width)
        )
    return found


def test_each_answer_shows_what_every_objective_adds_to_its_score(open_page, mixed):
    page = open_page(mixed)
    write(page)
    score(page)
    explained = [MIXED.explain(PROMPT, text) for text in ANSWERS]
    largest = max(abs(value) for one in explained for value in one.contributions)

    for number, why in enumerate(explained):
        shown = bars(card(page, number))
        for (name, figure, sign, width), objective, value, rated in zip(
            shown, why.objectives, why.contributions, why.as_rated, strict=True
        ):
            assert name.startswith(f"{objective} rated ")
            assert figures(name)[0] == pytest.approx(rated, abs=0.006)
            assert figures(figure)[0] == pytest.approx(value, abs=0.006)
            assert sign == (value > 0) - (value < 0)
            assert width == pytest.approx(50 * abs(value) / largest, abs=0.1)
        total = card(page, number).locator(".bars tfoot .number").text_content()
        assert figures(total)[0] == pytest.approx(why.score, abs=0.006)
    # Verbosity is taken out of the others and adds nothing itself.
    assert bars(card(page, 0))[2][1:] == ("+0.000", 0, 0.0)


def test_two_answers_side_by_side_say_which_objectives_decided(open_page, mixed):
    page = open_page(mixed)
    write(page)
    score(page)
    page.select_option(".beside select >> nth=0", "2")
    page.select_option(".beside select >> nth=1", "0")
    one, two = (MIXED.explain(PROMPT, ANSWERS[i]) for i in (2, 0))
    beside = page.locator(".beside")
    shown = bars(beside)
    gap = one.score - two.score
    ahead, behind = ("Answer 3", "Answer 1") if gap > 0 else ("Answer 1", "Answer 3")

    assert [name for name, *_ in shown] == [row.objective for row in one.minus(two)]
    assert [figures(figure)[0] for _, figure, *_ in shown] == pytest.approx(
        [row.difference for row in one.minus(two)], abs=0.006
    )
    assert shown[0][3] == 50
    total = beside.locator("tfoot .number").text_content()
    assert figures(total)[0] == pytest.approx(gap, abs=0.006)
    assert f"{ahead} is ahead of {behind} by" in beside.locator(".decided").text_content()
    # The link holds the two; whoever opens it sees them again.
    again = open_page(page.url)
    again.wait_for_selector(".beside")
    chosen = [again.locator(".beside select").nth(i).input_value() for i in (0, 1)]
    assert chosen == ["2", "0"]


def test_two_answers_are_chosen_with_keys_alone(open_page, mixed):
    page = open_page(mixed)
    write(page)
    score(page)
    before = page.text_content(".beside .decided")
    page.focus(".beside select >> nth=0")
    page.keyboard.press("Home")
    page.keyboard.press("Tab")
    page.keyboard.press("End")
    chosen = [page.locator(".beside select").nth(i).input_value() for i in (0, 1)]
    after = page.text_content(".beside .decided")
    page.keyboard.press("Home")

    assert "is ahead of" in before
    assert chosen == ["0", "2"]
    assert "Answer 1" in after
    assert "Answer 3" in after
    assert page.text_content(".beside .decided") == "Choose two different answers."


def test_many_objectives_show_the_large_ones_and_the_rest_on_request(open_page, mixed):
    page = open_page(mixed, scheme="dark")
    write(page)
    page.select_option("#model-1", "many")
    page.select_option("#model-2", "mixed")
    score(page)
    first = card(page, 0)
    visible = first.locator(".bars >> nth=0 >> tbody tr").count()
    first.locator(".objectives summary").click()
    names = [name for name, *_ in bars(first)]

    assert visible == 8
    assert sorted(names) == sorted(MANY)  # the hostile one as it was typed
    assert "4 more of these, smaller; together" in first.locator("summary").text_content()
    # Choosing in one model's panel chooses in the other's, too.
    page.select_option(".column >> nth=0 >> .beside select >> nth=0", "1")
    assert page.locator(".beside select").nth(2).input_value() == "1"


def test_bars_fit_a_narrow_screen_and_one_answer_has_nothing_beside_it(open_page, mixed):
    page = open_page(mixed, width=360, height=740)
    write(page)
    score(page)
    wide = page.evaluate("document.documentElement.scrollWidth")
    page.fill("#answer-2", "")
    page.fill("#answer-3", "")
    score(page)

    assert wide <= 360
    assert page.locator(".objectives").count() == 1
    assert page.locator(".beside").count() == 0


def test_a_model_without_objectives_shows_no_bars(open_page, mixed):
    page = open_page(mixed)
    write(page)
    page.select_option("#model-1", "last")
    score(page)

    assert page.locator(".bars").count() == 0
    assert page.locator(".beside").count() == 0
