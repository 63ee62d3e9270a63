"""The report of an evaluation: its numbers are those of the tables, and no text can break it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pages import Reader

from retrm.evaluation.benchmarks.base import BenchmarkData, Item, ScoredItem
from retrm.evaluation.contamination import Overlap
from retrm.evaluation.findings import Findings, findings_of
from retrm.evaluation.mistakes import mistakes
from retrm.evaluation.score_file import ScoredRow, ScoreFile
from retrm.evaluation.tables import BenchmarkTable, measure
from retrm.metrics import Interval
from retrm.records import Answer
from retrm.reports.canvas import png_bytes
from retrm.reports.evaluation_card import evaluation_card, markdown
from retrm.reports.evaluation_figures import (
    bias_figure,
    curve_figure,
    reliability_figure,
    subset_figure,
)
from retrm.reports.evaluation_items import HeatScale, mistakes_html, shortened
from retrm.reports.evaluation_names import short_names
from retrm.reports.evaluation_page import evaluation_page, write_report
from retrm.reports.evaluation_words import notes, standing, verdict
from retrm.reports.words import number, span

HOSTILE = "</script></details><img src=x onerror=alert(1)>| **a** <b>\u2028&amp;"
# Margins of twelve items, chosen - rejected: nine are right in all, four of six in `one`, five in `two`.
MARGINS = (1, 2, 1, 1, -3, -1, 1, 1, 2, 1, 1, -2)
# The chosen answer is longer in four items of `one` and in one of `two`.
LONGER = (1, 1, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0)
OVERLAP = Overlap("train.jsonl", 2, 12, 1, 2, 0, 0, ("0", "1"))


def item(number: int, prompt: str = "", texts: Sequence[str] = ()) -> Item:
    lengths = (9, 4) if LONGER[number] else (4, 9)
    made = texts or ["x" * n for n in lengths]
    answers = tuple(Answer.of(prompt or f"question {number}", text) for text in made)
    subset = "one" if number < 6 else "two"
    return Item(str(number), subset, answers[0].prompt_id, answers)


def scores_of(name: str, items: Sequence[Item], values: Sequence[Sequence[float]]) -> ScoreFile:
    rows = []
    for one, some in zip(items, values, strict=True):
        lengths = tuple(len(answer.response) for answer in one.answers)
        scored = ScoredItem(
            one.id, one.subset, one.cluster, one.facts, lengths, np.array(some, dtype=np.float64)
        )
        rows.append(ScoredRow(scored, None, (False,) * len(some)))
    kind = "baseline" if name in ("longest", "shortest", "random") else "scorer"
    about = {"identity": f"id of {name}", "seconds_of_this_run": 12.4}
    return ScoreFile("hh_rlhf", name, tuple(rows), kind, about=about)


def preferences(items: Sequence[Item] | None = None, names: Sequence[str] = ("runs/a",)):
    """Files of scorers with the margins above, and the two length baselines."""
    made = [item(i) for i in range(len(MARGINS))] if items is None else items
    files = [scores_of(name, made, [(m, 0) for m in MARGINS[: len(made)]]) for name in names]
    for name, sign in (("longest", 1), ("shortest", -1)):
        values = [[sign * len(a.response) for a in one.answers] for one in made]
        files.append(scores_of(name, made, values))
    return BenchmarkData("hh_rlhf", tuple(made)), files


def page_of(files, texts=None, contamination=None, **options) -> str:
    findings = findings_of(files, texts, n_resamples=100)
    return evaluation_page(
        [measure(files, n_resamples=100)],
        files,
        [texts] if texts is not None else [],
        contamination or {},
        findings=findings,
        **options,
    )


@pytest.fixture(scope="module")
def run():
    return preferences()


@pytest.fixture(scope="module")
def table(run) -> BenchmarkTable:
    return measure(run[1], n_resamples=100)


@pytest.fixture(scope="module")
def page(run) -> str:
    return page_of(run[1], run[0])


@dataclass
class Heat:
    tokens: tuple[str, ...]
    contributions: np.ndarray
    running: np.ndarray


# ------------------------------------------------------------------------------------ the page


def test_every_figure_of_the_table_stands_on_the_page_with_its_interval(table, page) -> None:
    text = Reader(page).text
    # 9 of 12 right; 4 of 6 and 5 of 6 in the subsets; the longer is chosen in 5 of 12.
    assert [row.value.value for row in table.of("runs/a") if row.is_official] == [
        9 / 12,
        4 / 6,
        5 / 6,
    ]
    assert "all accuracy headline 12 .500 .750" in text
    assert "one accuracy 6 .500 .667" in text
    assert "two accuracy 6 .500 .833" in text
    for row in table.rows:
        assert f"{number(row.value.value)} {span(row.value.low, row.value.high)}" in text


def test_a_figure_that_length_reaches_as_well_is_marked_in_words_and_others_are_not(page) -> None:
    text = Reader(page).text
    line = text[text.index("one accuracy 6 .500") :][:200]
    # In `one` the longer answer is chosen in 4 of 6: as often as the scorer is right.
    assert re.match(r"one accuracy 6 \.500 \.667 \[[^]]*\] longest does as well \.667", line)
    line = text[text.index("two accuracy 6 .500") :][:200]
    # In `two` the shorter is chosen in 5 of 6.
    assert re.match(r"two accuracy 6 \.500 \.833 \[[^]]*\] shortest does as well", line)
    line = text[text.index("all accuracy headline") :][:60]
    assert "as well" not in line


def test_figures_that_are_not_official_stand_apart(page) -> None:
    official, _, rest = page.partition("Figures of ours, not official")
    assert "ties half" not in official
    assert "accuracy, ties half" in rest


def test_the_page_needs_nothing_from_elsewhere_and_is_well_formed(page) -> None:
    found = Reader(page)
    tags = {tag for tag, _ in found.tags}
    assert "script" not in tags
    images = [a["src"] for tag, a in found.tags if tag == "img"]
    assert images
    assert all(image.startswith("data:image/png") for image in images)
    assert "http" not in page.replace("http-equiv", "")
    assert "default-src 'none'" in page


def test_the_same_results_give_the_same_bytes(run, page) -> None:
    assert page_of(run[1], run[0]) == page


def test_hostile_texts_ids_and_names_stay_text() -> None:
    bad = [
        replace(
            item(i, f"{i} {HOSTILE}", [f"chosen {HOSTILE}", f"rejected {HOSTILE} more"]),
            id=f"{i}{HOSTILE}",
            subset=f"{'one' if i < 6 else 'two'}{HOSTILE}",
        )
        for i in range(12)
    ]
    texts, files = preferences(bad, [f"runs/{HOSTILE}"])
    heat = {
        ("hh_rlhf", f"runs/{HOSTILE}", one.id, 0): Heat(
            (HOSTILE, "x", HOSTILE), np.array([1.0, -1.0, 0.0]), np.zeros(3)
        )
        for one in bad
    }
    overlap = replace(OVERLAP, training=HOSTILE)
    page = page_of(files, texts, {"hh_rlhf": overlap}, heat=heat, facts={HOSTILE: HOSTILE})
    found = Reader(page)
    assert "<img src=x" not in page
    assert not any(name.startswith("on") for _, attributes in found.tags for name in attributes)
    assert found.text.count("onerror=alert(1)") > 20


def test_whether_the_training_data_were_checked_is_said(run) -> None:
    assert "was not checked" in Reader(page_of(run[1])).text
    text = Reader(page_of(run[1], contamination={"hh_rlhf": OVERLAP})).text
    assert "2 of 12 items stand in train.jsonl" in text
    assert "was not checked" not in text


def test_overlong_cut_excluded_and_notes_are_all_said(run) -> None:
    texts, files = run
    rows = files[0].rows
    lost = replace(rows[0], item=replace(rows[0].item, scores=np.array([np.nan, 0.0])))
    cut = replace(rows[1], is_cut=(True, True))
    first = replace(
        files[0],
        rows=(lost, cut, *rows[2:]),
        excluded={"a reply is blank": 4},
        notes=("only a part", "Is it all?"),
    )
    text = Reader(page_of([first, *files[1:]], texts)).text
    for words in (
        "Items too long for a, which take no part for anybody: 1.",
        "Answers that lost the beginning of their prompt to fit a: 2.",
        "Records left out (a reply is blank): 4.",
        "Only a part.",
        "Is it all?",
        "11 items",
    ):
        assert words in text


def test_ties_are_counted_beside_the_scorer_that_has_them() -> None:
    made = [item(i) for i in range(12)]
    tied = scores_of("runs/tied", made, [(0, 0), *[(1, 0)] * 11])
    text = Reader(page_of([tied, *preferences(made)[1]])).text
    # 11 of 12, the tie counts as wrong by the official rule.
    assert re.search(r"all accuracy headline 12 \.500 \.917 \[[^]]*\] 1 tie \.750", text)


def test_several_scorers_stand_side_by_side() -> None:
    texts, files = preferences(names=("runs/a", "runs/b"))
    text = Reader(page_of(files, texts)).text
    assert "a on HH-RLHF" in text
    assert "b on HH-RLHF" in text
    assert "figure n chance a b longest shortest" in text
    assert "Worth reading: mistakes of b" in text


def test_one_scorer_one_subset_and_no_texts_make_a_page() -> None:
    made = [item(i) for i in range(3)]
    only = scores_of("runs/a", made, [(0, 1), (1, 0), (1, 0)])
    text = Reader(page_of([only])).text
    assert "No baseline stands beside it." in text
    assert "The texts of the items were not at hand." in text
    assert "should win: 0 scores higher: 1" in text


def test_baselines_alone_make_a_page(run) -> None:
    text = Reader(page_of(run[1][1:])).text
    assert "No scorer but baselines took part." in text
    assert "Worth reading" not in text


def test_where_numbers_come_from_is_listed(run) -> None:
    page = page_of(run[1], facts={"versions": {"retrm": "9.9"}, "options": {"limit": None}})
    text = Reader(page).text
    for words in ("versions.retrm 9.9", "options.limit –", "identity id of runs/a", "12.4"):
        assert words in text


def test_both_files_are_written(run, table, tmp_path: Path) -> None:
    write_report(tmp_path, [table], run[1], [run[0]], {})
    assert "<!doctype html>" in (tmp_path / "report.html").read_text("utf-8")
    assert (tmp_path / "report.md").read_text("utf-8").startswith("## HH-RLHF\n")


# --------------------------------------------------------------------------------- standing


def interval(value: float, low: float, high: float) -> Interval:
    return Interval(value, low, high, 10, 10)


@pytest.mark.parametrize(
    ("minus", "beaten_by", "better", "tone", "words"),
    [
        (
            {"random": (0.2, 0.1, 0.3)},
            (),
            "higher",
            "good",
            "Better than random (+.200 [.100, .300]).",
        ),
        (
            {"random": (0.2, 0.1, 0.3)},
            (),
            "lower",
            "bad",
            "Worse than random (+.200 [.100, .300]).",
        ),
        ({"random": (-0.2, -0.3, -0.1)}, (), "lower", "good", "Better than random"),
        ({"random": (0.2, 0.0, 0.3)}, (), "higher", "open", "Not told apart from random"),
        ({"random": (0.2, 0.1, 0.3)}, (), "neither", "open", "Not told apart from random"),
        (
            {"log_probability": (0.2, 0.1, 0.3), "longest": (-0.1, -0.2, 0.1)},
            ("longest",),
            "higher",
            "bad",
            "Better than log-probability (+.200 [.100, .300]); not told apart from longest "
            "(-.100 [-.200, .100]); longest does as well.",
        ),
        ({"longest": (-0.2, -0.3, -0.1)}, ("longest",), "higher", "bad", "Worse than longest"),
    ],
)
def test_where_a_scorer_stands_follows_the_paired_intervals(
    table, minus, beaten_by, better, tone, words
) -> None:
    row = replace(
        table.headline("runs/a"),
        minus={name: interval(*ends) for name, ends in minus.items()},
        beaten_by=beaten_by,
        better=better,
    )
    found = standing(row)
    assert found.tone == tone
    assert found.sentence.startswith(words)


def test_what_is_worse_than_a_length_is_not_said_to_be_reached_by_it_as_well(table) -> None:
    row = replace(
        table.headline("runs/a"),
        minus={"longest": interval(-0.2, -0.3, -0.1)},
        beaten_by=("longest",),
    )
    assert "as well" not in standing(row).sentence


def test_a_note_that_several_figures_share_stands_once(table) -> None:
    rows = tuple(replace(row, note="few items") for row in table.rows)
    found = notes(replace(table, rows=rows))
    assert found == ["All: accuracy; one: accuracy; two: accuracy: few items."]


# ---------------------------------------------------------------------------------- the card


def test_the_card_has_one_table_with_the_numbers_of_the_page(run, table) -> None:
    card = evaluation_card([table], run[1], {"hh_rlhf": OVERLAP})
    lines = [line for line in card.splitlines() if line.startswith("|")]
    assert lines[0] == "| figure | n | chance | a | longest | shortest |"
    assert len(lines) == 2 + 3
    value = table.headline("runs/a").value
    cell = f"**.750 {span(value.low, value.high)}**"
    assert lines[2].startswith(f"| **all: accuracy** | 12 | .500 | {cell} |")
    assert "] (longest does as well)" in lines[3]
    assert {line.count("|") for line in lines} == {7}
    sentence = standing(table.headline("runs/a")).sentence
    assert f"- a, all: accuracy .750 {span(value.low, value.high)}: {sentence}" in card
    assert "- Training data: 2 of 12 items stand in train.jsonl" in card
    assert "- Scored in (all benchmarks of the run): a 12 s." in card


def test_a_headline_that_is_not_official_is_still_said_in_the_card(run, table) -> None:
    rows = tuple(replace(row, is_official=not row.is_headline) for row in table.rows)
    card = evaluation_card([replace(table, rows=rows)], run[1], {})
    assert "- a, all: accuracy (not official) .750 [" in card
    assert "| **all: accuracy**" not in card


def test_hostile_names_cannot_break_the_table_of_the_card() -> None:
    _, files = preferences(names=[f"runs/{HOSTILE}"])
    card = evaluation_card([measure(files, n_resamples=50)], files, {})
    lines = [line for line in card.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {7}
    assert not re.search(r"(?<!\\)<", card)


@settings(max_examples=40)
@given(st.text())
def test_markdown_is_one_line_without_a_bare_mark(text: str) -> None:
    found = markdown(text)
    assert len(found.splitlines()) <= 1
    assert not re.search(r"(?<!\\)(?:\\\\)*[<|`*_]", found)


def test_brackets_of_numbers_stay_as_they_are_and_those_of_links_do_not() -> None:
    assert markdown("(+.1 [.0, .2]): so") == "(+.1 [.0, .2]): so"
    assert markdown("[a](b) [c][d]") == r"\[a\](b) [c\][d]"
    assert markdown("[a]: b") == r"\[a]: b"


# ------------------------------------------------------------------------------ worth reading


def test_mistakes_are_the_most_wrong_pair_of_each_item_and_ties_are_none() -> None:
    made = [
        Item(str(i), "s", str(i), tuple(Answer.of(f"q{i}", t) for t in "abc"), {"labels": labels})
        for i, labels in enumerate([[1, 0, 0], [1, 1, 0], [1, 0, 0]])
    ]
    values = [(1, 3, 2), (5, 0, 5), (4, 1, 0)]
    file = replace(scores_of("runs/a", made, values), benchmark="best_of_n")
    found = mistakes(file)
    # Margins 1-3, 1-2 | 5-5, 0-5 | 4-1, 4-0 = -2, -1, 0, -5, 3, 4.
    assert [(m.item, m.preferred, m.other, m.margin) for m in found.shown] == [
        ("1", 1, 2, -5.0),
        ("0", 0, 1, -2.0),
    ]
    assert (found.n_items, found.n_pairs, found.n_ties) == (2, 3, 1)
    assert (found.n_all_items, found.n_all_pairs) == (3, 6)
    spread = np.std([-2, -1, 0, -5, 3, 4])
    assert found.shown[0].scaled_margin == pytest.approx(-5 / spread)
    assert mistakes(file, n_shown=1).shown == found.shown[:1]


def test_the_largest_wrong_margin_comes_first_on_the_page(page) -> None:
    text = Reader(page).text
    # Margins -3, -2 and -1 of items 4, 11 and 5.
    assert re.search(r"1\. 4 one wrong by 3,.*2\. 11 two wrong by 2,.*3\. 5 one wrong by 1,", text)
    assert "a orders 3 of 12 pairs wrongly, in 3 of 12 items." in text


def test_a_long_text_is_shown_by_its_beginning_and_opens_to_all_of_it() -> None:
    text = "word " * 500
    html = shortened(text, 100)
    assert html.startswith("<details class=long><summary>")
    assert html.count("word") == 20 + 500
    assert "all 2,500 characters" in html
    assert "<details" not in shortened("word " * 20, 100)


def test_a_text_beyond_all_measure_is_cut_and_says_so() -> None:
    html = shortened("a" * 30_000, 100)
    assert "all 30,000 characters (the first 20,000)" in html
    assert html.count("a") < 21_000


def test_tokens_are_coloured_by_what_they_add_on_one_scale_for_both_answers() -> None:
    one = Heat(("a", "b", "c"), np.array([2.0, 0.0, -1.0]), np.zeros(3))
    two = Heat(("d",), np.array([-2.0]), np.zeros(1))
    scale = HeatScale([one, two])
    # The 98 % quantile of 0, 1, 2, 2 is 2: levels 5 x 2/2, 0, 5 x -1/2 (to the even -2).
    assert scale.levels(one) == [5, 0, -2]
    assert scale.levels(two) == [-5]
    assert "what a token adds" in scale.words


def test_of_a_head_of_the_last_token_the_running_score_is_coloured() -> None:
    view = Heat(("a", "b", "c"), np.array([0.0, 0.0, 7.0]), np.array([1.0, 5.0, 7.0]))
    scale = HeatScale([view])
    # Around the median 5: distances 4, 0, 2, of which the 98 % quantile is 3.92.
    assert scale.levels(view) == [-5, 0, 3]
    assert "if the answer ended at this token" in scale.words


def test_values_that_are_all_the_same_have_no_colour() -> None:
    view = Heat(("a", "b"), np.zeros(2), np.full(2, 3.0))
    assert HeatScale([view]).levels(view) == [0, 0]


def test_heat_is_shown_in_place_of_the_text_of_the_answer_it_belongs_to(run) -> None:
    texts, files = run
    (found, *_) = findings_of(files, texts, n_resamples=50)
    view = Heat(("good", " bad"), np.array([1.0, -1.0]), np.zeros(2))
    html = mistakes_html(
        "hh_rlhf", "runs/a", found.mistakes, texts, {("hh_rlhf", "runs/a", "4", 1): view}
    )
    assert html.count("<i class=up5>good</i><i class=down5> bad</i>") == 1
    assert html.count("Colour:") == 1


def test_each_prompt_of_a_pair_of_two_prompts_is_shown() -> None:
    made = item(4)
    two = replace(made, answers=(Answer.of("first", "a"), Answer.of("second", "bb")))
    texts, files = preferences([*[item(i) for i in range(4)], two])
    (found, *_) = findings_of(files, texts, n_resamples=50)
    html = mistakes_html("hh_rlhf", "runs/a", found.mistakes, texts, {})
    assert "prompt of the first" in html
    assert "prompt of the second" in html


# ----------------------------------------------------------------------------------- pictures


def test_the_picture_has_every_official_figure_at_its_value_and_the_chance_line(table) -> None:
    (axes,) = subset_figure(table).axes
    labels = [tick.get_text() for tick in axes.get_yticklabels()]
    assert labels == ["all: accuracy (12)", "one: accuracy (6)", "two: accuracy (6)"]
    lines = {line.get_label(): line.get_xdata() for line in axes.get_lines()}
    np.testing.assert_allclose(lines["runs/a"], [9 / 12, 4 / 6, 5 / 6])
    np.testing.assert_allclose(lines["longest"], [5 / 12, 4 / 6, 1 / 6])
    chance = [c for c in axes.collections if c.get_label() == "chance"]
    assert {float(x) for s in chance[0].get_segments() for x in s[:, 0]} == {0.5}


@pytest.mark.parametrize("name", [r"cost $\frac{$", "_hidden"])
def test_any_name_of_a_scorer_can_be_drawn_and_stands_in_the_legend(name) -> None:
    _, files = preferences(names=[name])
    figure = subset_figure(measure(files, n_resamples=20))
    png_bytes(figure)
    assert name in [text.get_text().strip() for text in figure.legends[0].get_texts()]


def test_without_what_they_show_there_are_no_pictures(run) -> None:
    assert subset_figure(measure(run[1][1:], n_resamples=20)) is None
    bare = [Findings("hh_rlhf", "runs/a")]
    assert bias_figure(bare) is None
    assert reliability_figure(bare) is None
    assert curve_figure(bare) is None


def test_the_curves_show_gold_and_score_of_scorers_and_gold_of_baselines() -> None:
    made = [
        Item(
            str(i),
            "all",
            str(i),
            tuple(Answer.of(f"q{i}", t * 3) for t in "abc"),
            {"labels": labels},
        )
        for i, labels in enumerate([[1, 0, 0], [0, 1, 0], [0, 0, 1]])
    ]
    files = [
        replace(scores_of(name, made, values), benchmark="best_of_n")
        for name, values in (("runs/a", [(3, 2, 1)] * 3), ("random", [(1, 2, 3)] * 3))
    ]
    found = findings_of(files, n_resamples=50)
    assert [one.mistakes is None for one in found] == [False, True]
    gold, proxy = curve_figure(found).axes
    lines = {line.get_label(): line.get_ydata() for line in gold.get_lines()}
    # Whatever is kept first is right in one of three items: 1/3 at every N.
    np.testing.assert_allclose(lines["runs/a"], [1 / 3] * 3)
    assert "random" in lines
    # Mean of the largest of N of 3, 2, 1: 2, 8/3, 3 -> 0, 2/3, 1 of the rise.
    np.testing.assert_allclose(proxy.get_lines()[0].get_ydata(), [0, 2 / 3, 1])


def test_panels_of_biases_calibration_and_curves_stand_on_the_page(page) -> None:
    text = Reader(page).text
    for words in ("Biases", "correlation of score and length", "Calibration", "ECE", "raw margins"):
        assert words in text
    assert "Does more searching help?" not in text  # no labels, no curve


# -------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["/data/runs/a", "/data/runs/b"], ["a", "b"]),
        (["x/a", "y/a"], ["x/a", "y/a"]),
        (["x/longest", "a"], ["x/longest", "a"]),  # `longest` stands beside it
        (["a", "x/a"], ["a", "x/a"]),
        (["hf:org/model", "call:module:name"], ["model", "call:module:name"]),
        (["/a", "runs/b/"], ["a", "b"]),
    ],
)
def test_scorers_are_named_by_the_shortest_end_of_their_path_that_is_theirs(
    names, expected
) -> None:
    table = measure(preferences(names=names)[1], n_resamples=10)
    found = short_names([table])
    assert [found[name] for name in names] == expected
    assert len(set(found.values())) == len(found)


def test_the_page_shows_short_names_and_keeps_the_whole_one() -> None:
    texts, files = preferences(names=["/data/runs/a"])
    view = Heat(("good", " bad"), np.array([1.0, -1.0]), np.zeros(2))
    page = page_of(files, texts, heat={("hh_rlhf", "/data/runs/a", "4", 1): view})
    text = Reader(page).text
    assert "a on HH-RLHF" in text
    assert (
        text.count("/data/runs/a") == 2
    )  # its whole name, and the identity that the test made of it
    assert "scorer /data/runs/a" in text
    assert "<i class=up5>good</i>" in page


# ------------------------------------------------------------------- what the verdict rests on


@pytest.mark.parametrize(
    ("contamination", "tone", "ending"),
    [
        ({}, "good", "Not checked: whether it was trained on these items."),
        (
            {"hh_rlhf": OVERLAP},
            "open",
            "2 of 12 items stand in its training data, so this may be memory and no skill.",
        ),
        ({"hh_rlhf": replace(OVERLAP, n_items=0, ids=())}, "good", "[.100, .300])."),
        ({"llmbar": OVERLAP}, "good", "Not checked: whether it was trained on these items."),
    ],
)
def test_the_verdict_says_whether_the_items_may_be_known_by_heart(
    table, contamination, tone, ending
) -> None:
    row = replace(table.headline("runs/a"), minus={"random": interval(0.2, 0.1, 0.3)}, beaten_by=())
    found = verdict(row, contamination, "hh_rlhf")
    assert found.tone == tone
    assert found.sentence.startswith("Better than random (+.200 [.100, .300]).")
    assert found.sentence.endswith(ending)


def test_the_verdict_of_card_and_page_says_what_stands_in_the_training_data(run, table) -> None:
    words = "2 of 12 items stand in its training data, so this may be memory"
    for contamination, is_said in (({"hh_rlhf": OVERLAP}, True), ({}, False)):
        page_text = Reader(page_of(run[1], contamination=contamination)).text
        card = evaluation_card([table], run[1], contamination)
        for text in (page_text, card):
            assert (words in text) == is_said
            assert ("Not checked: whether it was trained" in text) != is_said


def test_time_of_a_run_that_scored_nothing_is_not_shown_as_time_of_scoring(run, table) -> None:
    files = [
        replace(file, about={"seconds_of_this_run": 0.0, "answers_of_this_run": 0})
        for file in run[1]
    ]
    assert "Scored in" not in evaluation_card([table], files, {})
