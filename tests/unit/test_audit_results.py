"""The page of audit results: its tables come from the files, and say what the files say."""

import importlib
import json
import math
import re
import runpy
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from audit_planted import TINY, planted, tiny_plan
from audit_toy import M, contrast, removal, toy_facts

from retrm.audit.intervention_plan import InterventionPlan
from retrm.audit.plan import AuditPlan
from retrm.audit.rules import claim_of
from retrm.audit.tables import AuditTables, CellRow, Verdict
from retrm.cli.main import app

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
NAN = math.nan


@pytest.fixture(scope="module")
def scripts():
    """The scripts as modules; they are no part of the package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DOCS))
        names = (
            *("tables_in_pages", "measurements", "audit_blocks", "intervention_blocks"),
            *("study_blocks", "summary_block", "make_audit_results", "make_audit_reports"),
        )
        yield {name: importlib.import_module(name) for name in names}


@pytest.fixture(scope="module")
def audits() -> dict[str, AuditTables]:
    """Real tables of planted answers: graded ones, and preferences."""
    facts = {
        **{"model": "folder/toy.gguf", "n_skipped": 2, "n_tokens": 12_345},
        **{"reading_s": 30.0},
    }
    stages = ("primary", "controls", "width-last", "learning", "matrix", "layers-last")
    graded = planted("reasoning", n_prompts=40).audit(tiny_plan(), only=stages)
    pairs = planted("nowhere", n_prompts=20, preferences=True).audit(tiny_plan(), only=stages)
    return {
        "demo": replace(graded, facts={**graded.facts, **facts}),
        "hh": replace(pairs, facts={**pairs.facts, **facts}),
    }


@pytest.fixture
def results(tmp_path, audits) -> Path:
    """A folder of results in which two of the audits are measured."""
    for name, tables in audits.items():
        tables.save(tmp_path / "audit" / name)
    return tmp_path


# ------------------------------------------------------------------------------------- the pages


@pytest.mark.parametrize("script", ["make_tables.py", "make_audit_results.py"])
@pytest.mark.usefixtures("scripts")
def test_the_generated_tables_are_those_of_the_committed_files(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [script, "--check"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(DOCS / script), run_name="__main__")

    assert ended.value.code == 0, capsys.readouterr().err


def test_a_changed_table_is_found_and_mended(scripts, tmp_path, monkeypatch, capsys):
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- t: made by x -->\nold\n<!-- /t -->\nz\n", "utf-8")
    write_or_check = scripts["tables_in_pages"].write_or_check

    monkeypatch.setattr(sys, "argv", ["x.py", "--check"])
    assert write_or_check(page, lambda: {"t": "new"}, about="") == 1
    assert "page.md is out of date: run python docs/x.py" in capsys.readouterr().err

    monkeypatch.setattr(sys, "argv", ["x.py"])
    assert write_or_check(page, lambda: {"t": "new"}, about="") == 0
    assert page.read_text("utf-8") == "a\n<!-- t: made by x -->\nnew\n<!-- /t -->\nz\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has places for \\[\\], the script makes \\['t'\\]"),
        ("<!-- t: made by x -->\n<!-- /t -->\n<!-- u: made by x -->", "\\['t', 'u'\\]"),
        ("<!-- t: made by x -->\n", "not closed by <!-- /t -->"),
    ],
)
def test_a_page_and_a_script_that_disagree_about_blocks_are_refused(scripts, text, message):
    with pytest.raises(ValueError, match=message):
        scripts["tables_in_pages"].filled(text, {"t": "new"})


def test_a_cell_that_would_break_a_table_is_refused(scripts):
    with pytest.raises(ValueError, match="a bar or a line break"):
        scripts["tables_in_pages"].table(["a"], [["1|2"]])
    with pytest.raises(ValueError, match=r"got 2 cells .* expected 1"):
        scripts["tables_in_pages"].table(["a"], [["1", "2"]])


@pytest.mark.parametrize(
    ("low", "high", "shown"),
    [
        (0.001, 0.020, "**.010 [.001, .020]**"),
        (-0.020, -0.001, "**.010 [-.020, -.001]**"),
        (-0.001, 0.020, ".010 [-.001, .020]"),
        (0.0, 0.020, ".010 [.000, .020]"),  # an end at zero excludes nothing
        (NAN, NAN, ".010"),
    ],
)
def test_a_difference_is_bold_only_where_its_interval_excludes_zero(scripts, low, high, shown):
    row = replace(contrast(), value=0.01, low=low, high=high)

    assert scripts["tables_in_pages"].difference(row) == shown


# ---------------------------------------------------------------------------------- the audits


def test_without_files_every_block_says_so_and_names_a_command(scripts, tmp_path):
    blocks = scripts["make_audit_results"].blocks(tmp_path)

    assert all("ot measured yet" in block for block in blocks.values())
    assert "`retrm audit recipes/demo/rollouts.jsonl --model" in blocks["audit-files"]
    assert "python recipes/audit/gates.py" in blocks["audit-gates"]
    assert "--interventions" in blocks["audit-interventions"]


def commands(scripts) -> list[str]:
    made = scripts["make_audit_results"]
    return [made.INTERVENTIONS, *(made.command(n, a, m, more) for n, _, a, m, more in made.AUDITS)]


def test_the_commands_that_make_what_is_missing_exist(scripts):
    for command in commands(scripts):
        app.parse_args(command.split()[1:], print_error=False, exit_on_error=False)


def test_the_recipe_page_shows_the_commands_of_the_results_page(scripts):
    shown = " ".join((ROOT / "recipes/audit/README.md").read_text("utf-8").split())
    shown = shown.replace(" \\ ", " ")

    for command in commands(scripts):
        assert command in shown


def test_measured_audits_have_rows_in_every_block_and_the_rest_is_named(scripts, results):
    blocks = scripts["make_audit_results"].blocks(results)
    of_audits = {"primary", "baselines", "labels", "widths", "choices", "layers", "files"}

    for name in of_audits:
        assert re.search(r"^\W*`demo`", blocks[f"audit-{name}"], re.M), name
        assert re.search(r"^\W*`hh`", blocks[f"audit-{name}"], re.M), name
    named = [name for name in blocks if "`rm_bench`" in blocks[name]]
    assert named == ["audit-summary", "audit-files"]  # once at the top, and how to make it
    # Equal length needs right and wrong answers, so preferences stand in the other table only.
    assert re.findall(r"^\| `(\w+)`", blocks["audit-confidence"], re.M) == ["demo", "hh", "demo"]


def test_the_primary_table_repeats_the_figures_of_the_files(scripts, results, audits):
    tables = audits["demo"]
    block = scripts["make_audit_results"].blocks(results)["audit-primary"]
    figure = scripts["tables_in_pages"].figure
    rows = [line for line in block.splitlines() if line.startswith("| `demo`")]
    primary = next(row for row in tables.contrasts if row.role == "primary")
    reasoning = next(
        row
        for row in tables.cells
        if (row.sweep, row.features, row.metric) == ("primary", "reasoning", "within_auroc")
    )

    # Planted there, but nine draws are too few for a claim: rank p = (1 + 0) / (1 + 9).
    assert tables.verdicts[0].answer == "too few draws"
    p_value = scripts["audit_blocks"].p_value
    assert f"| **{figure(primary)}** | .100 | {p_value(primary.p)} | too few draws |" in rows[1]
    assert figure(reasoning) in rows[0]
    assert "toy.gguf" in rows[0]
    assert "folder" not in rows[0]


def test_the_mean_of_random_draws_is_the_mean_over_their_cells(scripts, results, audits):
    draws = [
        row.value
        for row in audits["demo"].cells
        if (row.sweep, row.features, row.metric) == ("primary", "random", "within_auroc")
    ]
    block = scripts["make_audit_results"].blocks(results)["audit-primary"]

    assert len(draws) == TINY["n_primary_draws"]
    assert f"| {scripts['audit_blocks'].number(sum(draws) / len(draws))} (" in block


def test_the_summary_counts_verdicts_and_gives_each_audit_a_sentence(scripts, results):
    summary = scripts["make_audit_results"].blocks(results)["audit-summary"]

    assert re.search(r"full state on \d of 2 sets\.\*\* \*", summary)
    assert "(told apart by the rule on 0 of 2 sets)" in summary
    assert "*too few draws*: `demo` (" in summary
    assert "- `demo` (own answers, demo questions, toy.gguf): **too few draws**" in summary
    # rank p of .1 = (1 + 0) / (1 + 9): no draw does as well
    assert "0 of 9 random subspaces do as well or better (rank p = .100)" in summary


def of(scripts, name, *contrasts, cells=(), **facts):
    """An audit of the page that holds these rows and nothing else."""
    made = scripts["make_audit_results"]
    facts = {**toy_facts(), "n_cut": 0, "n_mixed": 300, **facts}
    tables = AuditTables(facts=facts, contrasts=contrasts, cells=cells)
    tables = replace(tables, verdicts=made.verdicts(tables))
    return scripts["measurements"].Measurement(name, "toy", "", tables, Path("nowhere"))


def test_the_summary_says_what_is_solid_and_what_is_not(scripts):
    fixed = {"role": "primary", "first": "reasoning", "second": "random", "n_draws": 99}
    full = {"role": "economy", "first": "reasoning", "second": "full", "n_draws": 0, "rank_p": NAN}
    down = contrast(low=-0.05, high=-0.01, value=-0.03, rank_p=1.0, p=0.074, **fixed)
    up = contrast(low=0.01, high=0.07, value=0.04, rank_p=0.03, p=0.172, **fixed)
    worse = contrast(low=-0.08, high=-0.03, value=-0.06, p=0.001, **full)
    open_ = contrast(low=-0.03, high=0.03, value=0.0, p=0.9, **full)
    found = [of(scripts, "a", down, worse), of(scripts, "b", up, open_)]
    text = scripts["summary_block"].summary(found)

    assert "**Solid: worse than the full state on 1 of 2 sets.** *worse than full*: `a` (" in text
    assert (
        "**Not solid: better or worse than random directions** (told apart by the rule on 1 of 2 "
        "sets, with p of .050 or less for all sources of chance together on 0). *hurts*: `a` (-.030 "
        "[-.050, -.010], p = .074); *within the spread of random*: `b` (.040 [.010, .070], p = .172)."
    ) in text
    assert "0 of 99 random subspaces do as badly or worse (rank p = .010)" in text
    sure = of(scripts, "a", replace(down, p=0.02), worse)
    assert "**Solid on some: better or worse" in scripts["summary_block"].summary([sure])


def test_verdicts_of_the_page_are_of_todays_rules_whatever_is_stored(scripts, tmp_path, audits):
    claimed = Verdict("specificity", "helps", "by an older rule", is_primary=True)
    replace(audits["demo"], verdicts=(claimed,)).save(tmp_path / "audit" / "demo")
    blocks = scripts["make_audit_results"].blocks(tmp_path)

    assert "**too few draws**" in blocks["audit-summary"]
    assert "helps" not in blocks["audit-summary"]


def test_reports_are_made_again_from_the_tables_by_todays_rules(scripts, tmp_path):
    folder = tmp_path / "audit" / "demo"
    row = contrast(role="primary", low=0.01, high=0.07, n_draws=99, rank_p=0.03, holm_p=1.0)
    claimed = Verdict("specificity", "helps", "by an older rule", is_primary=True)
    AuditTables(facts=toy_facts(), contrasts=(row,), verdicts=(claimed,)).save(folder)

    assert scripts["make_audit_reports"].remake(tmp_path) == ["demo"]
    assert AuditTables.load(folder).verdicts[0].answer == "within the spread of random"
    assert AuditTables.load(folder).contrasts == (row,)
    assert "within the spread of random" in (folder / "audit.html").read_text("utf-8")
    assert (folder / "figures" / "contrasts.png").is_file()


@pytest.mark.parametrize(("share", "n_cut"), [("", 0), (" 13% of the answers are cut.", 13)])
def test_the_summary_tells_the_share_of_cut_answers(scripts, share, n_cut):
    row = contrast(role="primary", low=-0.05, high=-0.01, n_draws=99, rank_p=1.0)
    text = scripts["summary_block"].summary([of(scripts, "a", row, n_cut=n_cut, n_answers=100)])

    assert ("answers are cut" in text) == bool(share)
    assert share in text


def test_a_rule_that_orders_as_well_as_a_head_is_named(scripts, audits):
    cell = next(c for c in audits["demo"].cells if c.sweep == "primary")
    rows = [
        replace(cell, features=name, metric="within_auroc", value=value)
        for name, value in (
            *(("reasoning", 0.60), ("full", 0.70)),
            *(("shortest", 0.40), ("log-probability", 0.65)),
        )
    ]
    text = scripts["summary_block"].summary([of(scripts, "a", cells=rows)])

    assert "as the head on reasoning for `a` (log-probability .650, head .600)" in text
    assert "head on the full state" not in text


def test_the_difference_that_holm_would_have_asked_for_is_worked_out_from_p_and_df(scripts):
    # |t| of a two-sided p of .3173 is 1 without end of df: error .02. Of two that do not stand, the
    # next step asks for p = .025, so |t| = 2.2414: .0448.
    plain = {"first": "reasoning", "second": "random", "df": math.inf, "sweep": "width"}
    rows = [
        contrast(value=value, low=-1.0, high=1.0, p=0.31731, holm_p=0.63, **plain)
        for value in (0.02, -0.02)
    ]
    found = of(scripts, "a", *rows)

    assert scripts["summary_block"].needed_difference(found) == pytest.approx(0.0448, abs=1e-4)
    assert "had to reach ±: `a` .045." in scripts["summary_block"].summary([found])
    # One that stands leaves one: p = .05, |t| = 1.96.
    sure = of(scripts, "a", replace(rows[0], holm_p=0.01, p=0.005), rows[1])
    errors = (0.02 / 2.8070, 0.02)  # |t| of .005 is 2.807
    assert scripts["summary_block"].needed_difference(sure) == pytest.approx(
        1.96 * sum(errors) / 2, abs=1e-4
    )


def test_a_claim_needs_the_interval_and_the_corrected_p():
    assert claim_of(contrast(low=0.01, high=0.03, holm_p=0.04)) == 1
    assert claim_of(contrast(low=-0.03, high=-0.01, holm_p=0.04)) == -1
    assert claim_of(contrast(low=0.01, high=0.03, holm_p=0.06)) == 0
    assert claim_of(contrast(low=-0.01, high=0.03, holm_p=0.04)) == 0
    assert claim_of(contrast(low=0.01, high=0.03, holm_p=NAN)) == 0


def test_layers_are_counted_in_both_directions(scripts, tmp_path):
    rows = [
        contrast(sweep="layer", layer=0, value=0.02, low=0.01, high=0.03, holm_p=0.01),
        contrast(sweep="layer", layer=1, value=-0.05, low=-0.07, high=-0.03, holm_p=0.01),
        contrast(sweep="layer", layer=2, value=0.04, low=0.01, high=0.07, holm_p=0.2),
    ]
    full = CellRow(
        **{"sweep": "layer", "features": "full", "matrix": "-", "m": 64, "draw": 0, "offset": -1},
        **{"layer": 1, "pooling": "last", "head": "ridge", "scaling": "standardised"},
        **{"n_train_prompts": 32, "metric": "within_auroc", "value": 0.7, "low": 0.6, "high": 0.8},
        **{"n": 320, "n_prompts": 40, "n_undefined": 0, "at_end": 0.0},
    )
    tables = AuditTables(facts=toy_facts(), contrasts=rows, cells=[full, replace(full, layer=2)])
    found = scripts["measurements"].Measurement("demo", "toy", "", tables, tmp_path)

    (row,) = scripts["audit_blocks"]._layer_rows(found)

    assert row[2:7] == ["3", "1", "1", "**-.050 [-.070, -.030]** (layer 1)", ".010"]


def test_an_audit_that_the_page_does_not_know_is_refused(scripts, results, audits):
    audits["hh"].save(results / "audit" / "another")

    with pytest.raises(ValueError, match="holds another; expected some of demo"):
        scripts["make_audit_results"].blocks(results)


def test_pictures_are_linked_only_where_they_are(scripts, results):
    place = results / "audit" / "hh" / "figures"
    place.mkdir()
    (place / "width.png").write_bytes(b"")
    blocks = scripts["make_audit_results"].blocks(results)

    assert "Pictures: [`hh`](audit/hh/figures/width.png)." in blocks["audit-widths"]
    assert "Pictures" not in blocks["audit-labels"]


def test_settings_are_named_where_they_differ_from_the_default(scripts):
    plan = AuditPlan(poolings=("last", "gate"), n_draws=30)
    stored = json.loads(json.dumps(plan.as_dict()))

    assert scripts["audit_blocks"]._settings(stored) == "poolings = last, gate; n_draws = 30"
    assert (
        scripts["audit_blocks"]._settings(json.loads(json.dumps(AuditPlan().as_dict()))) == "none"
    )


def effect(removed: str, draw: int, change: float, **changes: object):
    """A removal with its change of log-probability, known to a hundredth."""
    return removal(
        **{"layers": "last", "removed": removed, "draw": draw, "measure": "log_probability"},
        **{"value": -0.5 + change, "difference": change, "difference_low": change - 0.01},
        **{"difference_high": change + 0.01, **changes},
    )


def test_an_intervention_stands_beside_random_ones_of_its_width_and_of_its_energy(
    scripts, tmp_path
):
    rows = [
        removal("last", "none", 0, "log_probability", -0.5),
        effect(
            *("reasoning", 0, -0.2),
            **{"minus_random": -0.17, "minus_random_low": -0.19, "minus_random_high": -0.15},
            random_holm_p=0.004,
        ),
        *(effect("random", draw, -0.02 - draw / 100) for draw in range(3)),
        *(effect("random_energy", draw, -0.2, m=3 * M) for draw in range(3)),
        energy("reasoning", 0, 0.3),
        *(energy("random_energy", draw, 0.3, m=3 * M) for draw in range(3)),
    ]
    block = removals(scripts, tmp_path, rows)

    assert (
        "| removed at | what | directions | energy removed | log-probability (nats a token) |"
    ) in block
    assert lines_of(block) == [
        ["nothing: the figure itself", "–", "–", "-.500 [-.540, -.460] |"],
        ["reasoning", "4", ".300 [.260, .340]", "**-.200 [-.210, -.190]** |"],
        # the mean of -.02, -.03, -.04
        ["random, mean (draws)", "4", "–", "-.030 (-.040 to -.020) |"],
        [
            *("random of equal energy, mean (draws)", "12"),
            *(".300 (.300 to .300)", "-.200 (-.200 to -.200) |"),
        ],
        ["reasoning − random", "4", "–", "**-.170 [-.190, -.150]** (Holm p .004) |"],
    ]


def test_each_size_has_its_own_control_of_equal_energy(scripts, tmp_path):
    # One control a size, numbered over all sizes, beside many random draws; the third missed its aim.
    rows = []
    for number, (m, share, loss) in enumerate([(4, 0.1, -0.1), (8, 0.3, -0.3), (16, 0.6, -0.6)]):
        aim = share if m < 16 else 0.8 * share - 0.01
        rows += [
            *(effect("reasoning", 0, loss, m=m), energy("reasoning", 0, share, m=m)),
            *(effect("random", draw, -0.01, m=m) for draw in range(19)),
            effect("random_energy", number, loss, m=5 * m),
            energy("random_energy", number, aim, m=5 * m),
        ]
    equal = [line for line in lines_of(removals(scripts, tmp_path, rows)) if "equal" in line[0]]

    assert [(line[1], line[3]) for line in equal] == [
        ("20", "**-.100 [-.110, -.090]** |"),
        ("40", "**-.300 [-.310, -.290]** |"),
    ]


def removals(scripts, folder: Path, rows) -> str:
    """The block of one audit with these interventions."""
    tables = AuditTables(facts=toy_facts(), interventions=rows)
    found = scripts["measurements"].Measurement("demo", "toy", "", tables, folder)
    return scripts["intervention_blocks"].interventions([found], "unused")


def lines_of(block: str) -> list[list[str]]:
    """Cells of the rows of a table, without the first."""
    return [line.split(" | ")[1:] for line in block.splitlines() if line.startswith("| last")]


def energy(removed: str, draw: int, share: float, m: int = M):
    """How much a removal takes out."""
    return removal("last", removed, draw, "energy_removed", share, m=m)


def test_a_verdict_goes_with_the_contrast_it_was_made_of(scripts, tmp_path):
    rows = [
        contrast(),
        contrast("economy", second="full"),
        contrast("economy", second="full", metric="best_of_n", value=-0.3),
    ]
    answers = [("specificity", "helps"), ("economy", "undecided"), ("economy", "worse than full")]
    tables = AuditTables(
        facts=toy_facts(),
        contrasts=rows,
        verdicts=[Verdict(q, a, "", True) for q, a in answers],
    )
    found = scripts["measurements"].Measurement("demo", "toy", "", tables, tmp_path)

    assert found.role("economy", "within_auroc")[1] == "undecided"
    assert found.role("economy", "best_of_n") == (rows[2], "worse than full")


# --------------------------------------------------------------------------------- the studies


def numbers(value: float, half: float = 0.02) -> dict[str, float | int]:
    """An interval as result files keep it."""
    return {
        **{"value": value, "low": value - half, "high": value + half},
        **{"n": 80, "n_clusters": 10, "n_undefined": 0},
    }


def test_gates_show_accuracy_and_cost_side_by_side(scripts):
    cost = {"n_features": 899, "bytes_per_token": 1798, "is_pooled": False, "fit_s_per_fold": 3.21}
    head = {"name": "retrm_elhsr", "within_auroc": numbers(0.7), "best_of_n": numbers(0.4)}
    oracle = {"name": "oracle", "within_auroc": None, "best_of_n": numbers(0.8)}
    gap = {"first": "retrm_elhsr", "metric": "within_auroc", **numbers(-0.05)}
    old = {k: v for k, v in gap.items() if k not in ("n", "n_clusters", "n_undefined")}
    gaps = [
        {**old, "second": "elhsr", "n_draws": 0, "n_at_least_as_good": 0},
        {**gap, "second": "random_elhsr", "n_draws": 3, "n_at_least_as_good": 3},
    ]
    block = scripts["study_blocks"].gates(
        {
            **{"n_candidates": 8, "n_prompts": 10, "n_mixed": 9, "n_answers": 80, "folds": 3},
            **{"model": "toy", "reading_s": 12.0, "heads": {"retrm_elhsr": cost}},
            **{"rows": [head, oracle], "differences": gaps},
        }
    )

    assert (
        "| `retrm_elhsr` | .700 [.680, .720] | .400 [.380, .420] | 899 | 1,798 a token | 3.2 |"
    ) in block
    assert "| oracle | – | .800 [.780, .820] | – | – | – |" in block
    assert ("| `retrm_elhsr` − `elhsr` | within-prompt AUROC | **-.050 [-.070, -.030]** |") in block
    # Three draws cannot make a claim, whatever the interval.
    assert (
        "| `retrm_elhsr` − `random_elhsr` | within-prompt AUROC | -.050 [-.070, -.030], 3 of 3 draws "
        "as good or better |"
    ) in block


@pytest.mark.parametrize(
    ("value", "n_better", "n_draws", "is_bold"),
    [
        (0.05, 0, 39, True),  # rank p 1 / 40
        (0.05, 1, 39, False),
        (0.05, 0, 38, False),
        (-0.05, 39, 39, True),
        (-0.05, 38, 39, False),
        (0.01, 0, 39, False),  # the interval holds 0
    ],
)
def test_a_difference_from_random_draws_is_bold_only_where_the_rank_allows_it(
    scripts, value, n_better, n_draws, is_bold
):
    found = scripts["tables_in_pages"].stored(numbers(value))
    shown = scripts["study_blocks"]._against(found, n_better, n_draws)

    assert shown.startswith("**") == is_bold
    assert shown.endswith(f"{n_better} of {n_draws} draws as good or better")


def test_generators_show_five_figures_and_what_the_author_alone_gives(scripts):
    names = ["within_prompt", "within_generator", "matched_authors"]
    more = ["unseen_authors", "seen_authors"]
    block = scripts["study_blocks"].generators(
        {
            "figures": {
                "author": {name: numbers(0.6) for name in names},
                "full": {name: numbers(0.7) for name in names + more},
            },
            "author_accuracy": {"full": 0.31, "most_frequent": 0.12},
            "differences": {
                "reasoning - random": {name: numbers(0.0) for name in names + more},
                "full: seen - unseen": numbers(0.04),
            },
            "draws": {"n": 19, "at_least_as_good": dict.fromkeys(names + more, 7)},
        }
    )

    assert (
        "| author | .600 [.580, .620] | .600 [.580, .620] | .600 [.580, .620] | – | – | – |"
        in block
    )
    assert "| reasoning - random | .000 [-.020, .020], 7 of 19 draws as good or better |" in block
    assert "| full | **.040 [.020, .060]** |" in block
    assert "The most frequent author has .120 of the answers." in block


def test_the_fine_tuned_regime_shows_where_the_reward_went(scripts):
    both = {"within_auroc": numbers(0.6), "best_of_n": numbers(0.4)}
    gap = {"within_auroc": numbers(0.0), "best_of_n": numbers(0.1)}
    share = {"chance": 0.05, "before": 0.3, "after": 0.4, "of_the_change": 0.5}
    shares = dict.fromkeys(("reasoning", "semantic", "random"), share)
    block = scripts["study_blocks"].finetuned(
        {
            "settings": {"model": "toy", "train_prompts": 4, "test_prompts": 5, "n_draws": 2},
            **{"pass_at_1": 0.3, "oracle": 0.9},
            "figures": {"solved reasoning": both, "tuned reasoning": both},
            "differences": {
                "reasoning: tuned - solved": gap,
                "tuned: reasoning - random": {**gap, "best_of_n": numbers(0.1)},
            },
            "draws": {"tuned": {"n": 2, "at_least_as_good": {"within_auroc": 1, "best_of_n": 0}}},
            "arms": {"tuned.random.1": {"shares": shares}, "solved.full.0": {"shares": shares}},
        }
    )

    assert "| LoRA | reasoning | .600 [.580, .620] | .400 [.380, .420] |" in block
    assert "| reasoning: tuned - solved | .000 [-.020, .020] | **.100 [.080, .120]** |" in block
    assert (
        "| tuned: reasoning - random | .000 [-.020, .020], 1 of 2 draws as good or better | .100 "
        "[.080, .120], 0 of 2 draws as good or better |"
    ) in block
    assert "| random, draw 1 | .300 | .300 | .400 | .400 | .500 | .500 | .500 | .050 |" in block
    assert "solved.full" not in block


# ------------------------------------------------------------------------------ pages about it


def toml_blocks(page: Path) -> list[dict]:
    return [
        tomllib.loads(text) for text in re.findall(r"```toml\n(.*?)```", page.read_text(), re.S)
    ]


@pytest.mark.parametrize("page", ["docs/how-to/audit.md", "recipes/audit/README.md"])
def test_settings_that_pages_show_are_taken_by_the_audit(page):
    found = toml_blocks(ROOT / page)

    assert found
    for settings in found:
        assert settings.keys() <= {"plan", "interventions"}
        tuples = {
            part: {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
            for part, values in settings.items()
        }
        AuditPlan(**tuples.get("plan", {}))
        InterventionPlan(**tuples.get("interventions", {}))


def test_the_settings_on_the_how_to_page_are_the_defaults_it_says_they_are():
    shown = {}
    for settings in toml_blocks(DOCS / "how-to" / "audit.md"):
        shown |= settings
    plain = json.loads(json.dumps({"plan": AuditPlan().as_dict()}))
    plain["interventions"] = json.loads(json.dumps(vars(InterventionPlan())))

    assert shown == plain


def test_the_recipe_page_shows_its_settings_file():
    (shown,) = toml_blocks(ROOT / "recipes/audit/README.md")

    assert shown == tomllib.loads((ROOT / "recipes/audit/interventions.toml").read_text("utf-8"))


def test_the_how_to_names_every_setting_verdict_and_file():
    text = (DOCS / "how-to" / "audit.md").read_text("utf-8")
    names = [
        *AuditPlan().as_dict(),
        *vars(InterventionPlan()),
        *("helps", "hurts", "no better than random", "undecided", "within margin"),
        *("worse than full", "no evidence", "leaks", "too few draws", "not length alone"),
        *("within the spread of random", "may read length only", "better than scalars alone"),
        *("audit.html", "audit.json", "cells", "contrasts", "interventions", "answers"),
    ]

    assert [name for name in names if f"`{name}`" not in text] == []
