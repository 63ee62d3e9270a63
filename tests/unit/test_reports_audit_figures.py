import builtins
import math
from dataclasses import replace

import audit_toy
import numpy as np
import pytest
from audit_toy import (
    N_DRAWS,
    N_LAYERS,
    WIDTH,
    M,
    cell,
    contrast,
    toy_audit,
    toy_curves,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import size

from retrm.audit.tables import AnswerRow, AuditTables
from retrm.errors import MissingExtraError, OutputError
from retrm.reports.audit_cells import (
    band_figure,
    heat_map_figure,
    layer_figure,
    learning_figure,
    width_figure,
)
from retrm.reports.audit_figures import FIGURES, Picture, draw_audit, write_pictures
from retrm.reports.audit_outcomes import (
    best_of_k_figure,
    contrasts_figure,
    correlation,
    interventions_figure,
    length_figure,
    within_correlation,
)
from retrm.reports.audit_states import (
    energy_figure,
    overlap_figure,
    running_mean,
    spectrum_figure,
)

NAN = math.nan
AUDIT = toy_audit()


def line(axes, name: str):
    """The line of an axes whose name begins so."""
    return next(found for found in axes.lines if str(found.get_label()).startswith(name))


def of(sweep: str, features: str, pooling: str = "last", metric: str = "within_auroc"):
    """Rows of the toy audit."""
    return [
        row
        for row in AUDIT.cells
        if (row.sweep, row.features, row.pooling, row.metric) == (sweep, features, pooling, metric)
    ]


def only(*cells, **facts) -> AuditTables:
    return AuditTables(facts={**AUDIT.facts, **facts}, cells=cells)


# ------------------------------------------------------------------------- all of them


@pytest.fixture(scope="module")
def pictures():
    return draw_audit(AUDIT)


def test_a_whole_audit_has_every_picture_as_a_readable_png(pictures) -> None:
    assert [picture.kind.name for picture in pictures] == [kind.name for kind in FIGURES]
    for picture in pictures:
        width, height = size(picture.png)
        assert 900 < width < 2000
        assert 300 < height < 1600


def test_the_pictures_of_preferences_lack_the_best_of_k(monkeypatch) -> None:
    monkeypatch.setattr("retrm.reports.audit_figures.png_bytes", lambda figure: b"")

    names = [picture.kind.name for picture in draw_audit(toy_audit("preferences"))]

    assert names == [kind.name for kind in FIGURES if kind.name != "best_of_k"]


def test_an_empty_audit_has_no_picture() -> None:
    assert draw_audit(AuditTables(facts={})) == ()


@pytest.mark.parametrize("kind", FIGURES, ids=lambda kind: kind.name)
def test_a_picture_without_its_rows_is_left_out(kind) -> None:
    assert kind.draw(replace(AUDIT, **dict.fromkeys(kind.tables, ()))) is None


@pytest.mark.parametrize("sweep", ["width", "band", "layer", "learning"])
def test_each_sweep_is_left_out_alone(sweep) -> None:
    draw = {
        **{"width": width_figure, "band": band_figure},
        **{"layer": layer_figure, "learning": learning_figure},
    }
    rest = replace(AUDIT, cells=tuple(row for row in AUDIT.cells if row.sweep != sweep))

    drawn = {name for name, figure in draw.items() if figure(rest) is not None}

    assert drawn == set(draw) - {sweep}


def test_every_picture_says_what_would_support_and_what_would_refute_the_claim() -> None:
    for kind in FIGURES:
        assert kind.shows.endswith(".")
        assert kind.supports.endswith(".")
        assert kind.refutes.endswith(".")
        assert kind.supports != kind.refutes
        assert set(kind.tables) <= set(vars(AUDIT))


def test_pictures_are_written_under_their_names(tmp_path) -> None:
    made = [Picture(FIGURES[0], b"one"), Picture(FIGURES[1], b"two")]

    paths = write_pictures(tmp_path / "figures", made)

    assert [path.name for path in paths] == ["contrasts.png", "width.png"]
    assert [path.read_bytes() for path in paths] == [b"one", b"two"]


def test_a_picture_of_an_earlier_run_is_removed_and_other_files_are_kept(tmp_path) -> None:
    for name in ("width.png", "contrasts.png", "mine.png"):
        (tmp_path / name).write_bytes(b"old")

    write_pictures(tmp_path, [Picture(FIGURES[0], b"one")])

    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "contrasts.png": b"one",
        "mine.png": b"old",
    }


def test_a_folder_that_cannot_be_written_is_our_error(tmp_path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(OutputError, match="could not write"):
        write_pictures(tmp_path / "file", [Picture(FIGURES[0], b"one")])


def test_without_matplotlib_the_pip_line_is_named(monkeypatch) -> None:
    real = builtins.__import__

    def without(name, *args, **options):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r'pip install "retrm\[plot\]"'):
        draw_audit(AuditTables(facts={}))


def test_a_model_name_with_dollars_is_drawn_as_it_is() -> None:
    hostile = replace(AUDIT, facts={**AUDIT.facts, "model": r"$\nonsense{$", "data": "a $ b"})

    figure = best_of_k_figure(hostile)
    figure.canvas.draw()

    assert figure.get_supxlabel().startswith(r"$\nonsense{$ · a $ b · 40 prompts")


# ------------------------------------------------------------------------------- cells


def test_the_width_picture_shows_the_values_of_the_table_in_a_panel_a_pooling() -> None:
    figure = width_figure(AUDIT)

    for axes, pooling in zip(figure.axes, ("last", "mean"), strict=True):
        for kind in ("reasoning", "semantic"):
            rows = sorted(of("width", kind, pooling), key=lambda row: row.m)
            assert list(line(axes, kind).get_xdata()) == [4, 8, 16, 32]
            assert list(line(axes, kind).get_ydata()) == [row.value for row in rows]
        (full,) = {row.value for row in of("width", "full", pooling)}
        assert set(line(axes, "full state").get_ydata()) == {full}
        assert axes.get_xscale() == "log"
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "last token",
        "mean over tokens",
    ]


def test_the_random_band_runs_from_the_5th_to_the_95th_percentile_of_the_draws() -> None:
    # draws .50, .51, ..., .70: the percentiles of 21 even steps are .51 and .69, the mean is .60
    draws = [
        cell("width", "random", draw=i, m=m, value=0.5 + i / 100) for i in range(21) for m in (4, 8)
    ]
    figure = width_figure(only(cell("width", "reasoning"), *draws))
    (axes,) = figure.axes

    band = axes.collections[-1] if len(axes.collections) == 1 else axes.collections[1]
    heights = band.get_paths()[0].vertices[:, 1]
    assert heights.min() == pytest.approx(0.51)
    assert heights.max() == pytest.approx(0.69)
    assert line(axes, "random").get_ydata() == pytest.approx([0.6, 0.6])
    assert "of 21 draws" in line(axes, "random").get_label()


def test_the_bars_on_the_reasoning_line_are_its_intervals() -> None:
    sure, unsure = cell("width", "reasoning", m=4), cell("width", "reasoning", m=8)
    figure = width_figure(only(sure, replace(unsure, low=NAN, high=NAN)))
    (bars,) = figure.axes[0].collections

    (segment,) = bars.get_segments()
    assert segment.tolist() == [[4, sure.low], [4, sure.high]]


def test_a_place_that_only_the_primary_sweep_measured_joins_the_line() -> None:
    own, twice = cell("width", "reasoning", m=8, value=0.6), cell("primary", "reasoning", m=8)
    primary = cell("primary", "reasoning", m=4, value=0.7)
    other = cell("primary", "reasoning", m=2, head="gated", value=0.1)
    (axes,) = width_figure(only(own, twice, primary, other)).axes

    # m 8 was measured in the sweep itself, and a gated head is another head
    assert list(line(axes, "reasoning").get_xdata()) == [4, 8]
    assert list(line(axes, "reasoning").get_ydata()) == [0.7, 0.6]


def test_primary_draws_do_not_mix_with_those_of_a_sweep() -> None:
    own = [cell("width", "random", draw=d, value=0.6) for d in range(2)]
    more = [cell("primary", "random", draw=d, value=0.9) for d in range(20)]
    (axes,) = width_figure(only(cell("width", "reasoning"), *own, *more)).axes

    assert list(line(axes, "random").get_ydata()) == [pytest.approx(0.6)]


def test_only_the_metric_of_record_is_drawn() -> None:
    rows = [cell("width", "reasoning", metric=m) for m in ("within_auroc", "best_of_n")]
    rows[1] = replace(rows[1], value=0.99)

    (axes,) = width_figure(only(*rows)).axes
    (other,) = width_figure(only(*rows, metric="best_of_n")).axes

    assert list(line(axes, "reasoning").get_ydata()) == [rows[0].value]
    assert list(line(other, "reasoning").get_ydata()) == [0.99]
    assert other.get_ylabel() == "best of N"
    assert width_figure(only(*rows, metric="pair_accuracy")) is None


def test_settings_that_collide_become_lines_of_their_own_names() -> None:
    rows = [
        replace(cell("width", "reasoning", m=m), matrix=matrix, value=value)
        for m in (4, 8)
        for matrix, value in (("raw", 0.6), ("centred", 0.7))
    ]
    (axes,) = width_figure(only(*rows)).axes

    assert list(line(axes, "reasoning (raw)").get_ydata()) == [0.6, 0.6]
    assert list(line(axes, "reasoning (centred)").get_ydata()) == [0.7, 0.7]


def test_settings_that_do_not_collide_stay_one_line() -> None:
    # below the last layer the folded basis, at the last one the raw one
    rows = [
        replace(cell("layer", "reasoning", layer=i), matrix="raw" if i == 2 else "folded")
        for i in (0, 1, 2)
    ]
    (axes,) = layer_figure(only(*rows)).axes

    assert list(line(axes, "reasoning").get_xdata()) == [0, 1, 2]
    assert line(axes, "reasoning").get_label() == "reasoning"


def test_the_sliding_band_marks_its_last_place_as_the_reasoning_subspace() -> None:
    (axes,) = band_figure(AUDIT).axes
    rows = sorted(of("band", "band"), key=lambda row: row.offset)

    assert list(line(axes, "band").get_xdata()) == list(range(0, WIDTH - M + 1, 5))
    assert list(line(axes, "band").get_ydata()) == [row.value for row in rows]
    # 64 wide, bands of 4: the last band starts at 60
    assert list(line(axes, "last band").get_xdata()) == [60]
    assert list(line(axes, "last band").get_ydata()) == [rows[-1].value]


def test_a_sliding_band_that_stops_early_has_no_such_mark() -> None:
    rows = [row for row in of("band", "band") if row.offset < WIDTH - M]

    (axes,) = band_figure(only(*rows)).axes

    assert not any(str(x.get_label()).startswith("last band") for x in axes.lines)


def test_the_levels_of_the_sliding_band_come_from_the_primary_setting() -> None:
    (axes,) = band_figure(AUDIT).axes
    draws = [row.value for row in of("primary", "random")]

    assert len(draws) == N_DRAWS
    assert line(axes, "random").get_ydata() == pytest.approx([np.mean(draws)] * 2)
    assert set(line(axes, "full state").get_ydata()) == {of("primary", "full")[0].value}


def test_a_level_of_another_head_or_width_is_not_drawn() -> None:
    row = cell("band", "band", offset=0)
    others = [cell("primary", "full", m=WIDTH, head="gated"), cell("primary", "random", m=M + 1)]

    (axes,) = band_figure(only(row, *others)).axes

    assert [x.get_label() for x in axes.lines if not x.get_label().startswith("_")] == ["band"]


def test_the_layer_picture_shows_every_layer() -> None:
    figure = layer_figure(AUDIT)

    for axes, pooling in zip(figure.axes, ("last", "mean"), strict=True):
        for kind, name in (("full", "full state"), ("semantic", "semantic")):
            assert list(line(axes, name).get_xdata()) == list(range(N_LAYERS + 1))
            values = [row.value for row in of("layer", kind, pooling)]
            assert list(line(axes, name).get_ydata()) == values
        assert "of 5 draws" in line(axes, "random").get_label()


def test_the_learning_curve_shows_scalars_that_have_no_pooling() -> None:
    (axes,) = learning_figure(AUDIT).axes
    rows = of("learning", "scalars", "-")

    assert list(line(axes, "scalars").get_xdata()) == [4, 8, 16, 32]
    assert list(line(axes, "scalars").get_ydata()) == [row.value for row in rows]


def test_the_heat_map_holds_the_mean_over_draws() -> None:
    figure = heat_map_figure(AUDIT)
    image = figure.axes[0].images[0].get_array()
    names = [text.get_text() for text in figure.axes[0].get_yticklabels()]

    assert names == ["full state", "reasoning", "semantic", "random (mean of draws)"]
    assert image.shape == (4, N_LAYERS + 1)
    assert image[1].tolist() == [row.value for row in of("layer", "reasoning")]
    first = [row.value for row in of("layer", "random") if row.layer == 0]
    assert image[3, 0] == pytest.approx(sum(first) / 5)


def test_a_kind_that_was_not_measured_at_a_layer_leaves_a_hole_in_the_heat_map() -> None:
    rows = [cell("layer", "full", layer=i) for i in (0, 3)] + [cell("layer", "reasoning", layer=3)]

    image = heat_map_figure(only(*rows)).axes[0].images[0].get_array()

    assert np.isnan(np.ma.filled(image.astype(float), NAN)).tolist() == [[False] * 2, [True, False]]


# ------------------------------------------------------------------------------ states


def test_the_spectrum_shows_each_matrix_and_the_cut() -> None:
    figure = spectrum_figure(AUDIT)
    axes = figure.axes[0]

    assert axes.get_yscale() == "log"
    for name, matrix in (("W, for", "raw"), ("W diag", "folded"), ("W without", "centred")):
        values = [row.singular_value for row in AUDIT.spectrum if row.matrix == matrix]
        assert list(line(axes, name).get_ydata()) == values
        assert list(line(axes, name).get_xdata()) == list(range(1, WIDTH + 1))
    # 64 directions, the last 4 are the reasoning subspace: the cut lies between the 60th and 61st
    assert set(line(axes, "cut").get_xdata()) == {60.5}
    assert len(figure.axes) == 3


def test_the_lower_panels_hold_separation_and_energy_of_each_direction() -> None:
    _, separation, energy = spectrum_figure(AUDIT).axes

    assert separation.lines[0].get_ydata().tolist() == pytest.approx(
        [abs(row.separation) for row in AUDIT.directions]
    )
    assert list(line(energy, "energy").get_ydata()) == [row.energy for row in AUDIT.directions]
    assert set(line(energy, "equal").get_ydata()) == {1 / WIDTH}


def test_directions_without_labels_have_no_panel_of_separation() -> None:
    blind = tuple(replace(row, separation=NAN, weight=NAN) for row in AUDIT.directions)

    _, energy = spectrum_figure(replace(AUDIT, directions=blind)).axes

    assert [x.get_label() for x in energy.lines][:2] == ["energy of states", "equal shares"]


def test_a_spectrum_without_directions_has_one_panel() -> None:
    assert len(spectrum_figure(replace(AUDIT, directions=())).axes) == 1


def test_a_running_mean_has_no_padding() -> None:
    places, means = running_mean(np.arange(4.0), np.array([1.0, 3.0, 5.0, 9.0]), 2)

    # (1+3)/2, (3+5)/2, (5+9)/2 at .5, 1.5, 2.5
    assert means.tolist() == [2, 4, 7]
    assert places.tolist() == [0.5, 1.5, 2.5]


def test_first_tokens_stand_apart_and_chance_is_m_of_the_width() -> None:
    sinks, others, *_ = energy_figure(AUDIT).axes

    assert sinks.get_title(loc="left") == "First tokens: reasoning subspace"
    shares = [row.reasoning for row in AUDIT.energy if row.token_kind == "first"]
    assert list(line(sinks, "first token").get_ydata()) == shares
    assert not any(x.get_label() == "first token" for x in others.lines)
    content = [row.reasoning for row in AUDIT.energy if row.token_kind == "content"]
    assert list(line(others, "answer: words").get_ydata()) == content
    # 4 of 64
    assert set(line(others, "chance").get_ydata()) == {0.0625}
    assert line(others, "chance").get_linestyle() == ":"


def test_an_audit_without_first_tokens_has_one_column() -> None:
    rest = tuple(row for row in AUDIT.energy if row.token_kind == "content")

    assert len(energy_figure(replace(AUDIT, energy=rest)).axes) == 2


def test_the_overlap_map_is_symmetric_with_ones_on_the_diagonal() -> None:
    axes = overlap_figure(AUDIT).axes[0]

    names = [text.get_text() for text in axes.get_xticklabels()]
    assert names == ["raw", "folded", "centred"]
    assert axes.images[0].get_array().tolist() == [
        [1, 0.31, 0.97],
        [0.31, 1, 0.29],
        [0.97, 0.29, 1],
    ]


# ---------------------------------------------------------------------------- outcomes


def test_the_primary_contrast_stands_on_top_then_the_one_against_the_full_state() -> None:
    (axes, *_) = contrasts_figure(AUDIT).axes

    # only the pooling varies, so it alone stands in the names; the rest is said once
    assert [text.get_text() for text in axes.get_yticklabels()] == [
        "reasoning minus random (last)",
        "reasoning minus full state (last)",
        "reasoning minus random (mean)",
        "reasoning minus semantic (last)",
    ]
    assert axes.get_xlabel().endswith("all: m 4, layer 6, raw, logistic, 32 training prompts")
    assert list(line(axes, "primary").get_xdata()) == [0.004]
    assert list(line(axes, "primary").get_ydata()) == [0]
    low, high = axes.get_ylim()
    assert high < 0 < low  # place 0 is the highest
    (segment,) = axes.collections[0].get_segments()
    assert segment[:, 0].tolist() == [-0.013, 0.021]


def test_the_margin_is_shaded_around_the_zero_line() -> None:
    (axes, *_) = contrasts_figure(AUDIT).axes

    (strip,) = axes.patches
    assert (strip.get_x(), strip.get_width()) == pytest.approx((-0.01, 0.02))
    assert any(set(x.get_xdata()) == {0} for x in axes.lines)


def test_contrasts_of_other_metrics_are_not_in_the_picture() -> None:
    rows = (contrast("primary"), contrast(metric="best_of_n"))

    (axes, *_) = contrasts_figure(AuditTables(facts=AUDIT.facts, contrasts=rows)).axes

    assert len(axes.get_yticklabels()) == 1


def test_contrasts_of_the_large_sweeps_are_counted_and_whole_groups_are_shown() -> None:
    rows = (
        *(contrast(sweep="layer", layer=layer) for layer in range(40)),
        *(contrast(sweep="matrix", matrix=name) for name in ("folded", "centred")),
        contrast(sweep="matrix", matrix="folded", m=2 * M),
        contrast(sweep="pooling", pooling="mean"),
        contrast(sweep="pooling", pooling="mean", first="semantic"),
        contrast(sweep="controls", m=M + 11),
        contrast("economy", second="full"),
        contrast("primary"),
    )

    (axes, *_) = contrasts_figure(AuditTables(facts=AUDIT.facts, contrasts=rows)).axes

    names = [text.get_text() for text in axes.get_yticklabels()]
    assert len(names) == 6
    assert [name.rsplit(", ", 1)[-1].strip("()") for name in names[3:]] == [
        "raw",
        "folded",
        "centred",
    ]
    # 40 layers, another width, and semantic directions
    assert "; 42 more in contrasts.parquet" in axes.get_xlabel()


def test_the_best_of_k_curves_are_those_of_the_table() -> None:
    (axes,) = best_of_k_figure(AUDIT).axes

    for name in ("reasoning", "majority", "log-probability", "oracle"):
        values = [row.value for row in toy_curves() if row.name == name]
        assert list(line(axes, name).get_ydata()) == values
        assert list(line(axes, name).get_xdata()) == list(range(1, 9))
    # only the reasoning and the full curve carry a band
    assert len(axes.collections) == 2


def answers(kind: str, scores, lengths, labels, prompts) -> AuditTables:
    rows = tuple(
        AnswerRow(
            i,
            prompt,
            label,
            n,
            1.0,
            **{"full": NAN, "random": NAN, "reasoning": NAN, kind: score},
            log_probability=-1.0,
        )
        for i, (score, n, label, prompt) in enumerate(
            zip(scores, lengths, labels, prompts, strict=True)
        )
    )
    return AuditTables(facts=AUDIT.facts, answers=rows)


def test_scores_are_drawn_by_label_with_their_correlation_with_length() -> None:
    # p: (1, 5), (2, 4), (3, 3) falls by one a token; q: (9, 7), (9, 1) does not vary in length
    tables = answers("full", [5.0, 4.0, 3.0, 7.0, 1.0], [1, 2, 3, 9, 9], [1, 0, 1, NAN, 0], "pppqq")

    (axes,) = length_figure(tables).axes

    points = {x.get_label(): (list(x.get_xdata()), list(x.get_ydata())) for x in axes.lines}
    assert points == {
        "right (2)": ([1, 3], [5, 3]),
        "wrong (2)": ([2, 9], [4, 1]),
        "no label (1)": ([9], [7]),
    }
    # all: lengths around 4.8: -3.8 -2.8 -1.8 4.2 4.2; scores around 4: 1 0 -1 3 -3
    # sum of products -3.8 + 1.8 + 12.6 - 12.6 = -2; over sqrt(60.8 * 20) = 34.87: -.057
    # within: lengths -1 0 1 0 0, scores 1 0 -1 3 -3: -2 / sqrt(2 * 20) = -.316
    assert axes.texts[0].get_text() == "correlation -.057\nwithin prompts -.316"


def test_scores_that_are_missing_have_no_panel() -> None:
    tables = answers("reasoning", [1.0, 2.0], [4, 4], [1, 0], "pp")

    (axes,) = length_figure(tables).axes

    assert axes.get_title(loc="left") == "reasoning"
    assert axes.texts[0].get_text() == "correlation –\nwithin prompts –"  # one length only


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 50), st.integers(-50, 50), st.sampled_from("abc")),
        min_size=3,
        max_size=12,
    )
)
def test_within_prompts_the_correlation_does_not_see_what_a_prompt_adds(rows) -> None:
    first, second = (np.array([row[i] for row in rows], dtype=float) for i in (0, 1))
    groups = [row[2] for row in rows]
    shift = np.array([{"a": 64.0, "b": -8.0, "c": 0.0}[group] for group in groups])

    found = within_correlation(first, second, groups)
    moved = within_correlation(first, second + shift, groups)

    rest = [
        [row[i] - np.mean([other[i] for other in rows if other[2] == row[2]]) for row in rows]
        for i in (0, 1)
    ]
    if any(max(np.abs(values)) < 1e-9 for values in rest):
        assert math.isnan(found)
        assert math.isnan(moved)
    else:
        assert found == pytest.approx(np.corrcoef(*rest)[0, 1], abs=1e-9)
        assert moved == pytest.approx(found, abs=1e-9)


def test_a_constant_has_no_correlation() -> None:
    assert math.isnan(correlation(np.ones(3), np.arange(3.0)))
    assert correlation(np.arange(3.0), -np.arange(3.0)) == pytest.approx(-1)


def removal(removed: str, value: float, *, draw: int = 0, layers: str = "all", **changes):
    ends = {"low": value - 0.1, "high": value + 0.1}
    row = audit_toy.removal(layers, removed, draw, "accuracy", value)
    return replace(row, **{**ends, **changes})


def test_bars_of_interventions_are_the_table_and_random_ones_the_mean_over_draws() -> None:
    rows = (
        removal("none", 0.5),
        removal("reasoning", 0.4),
        removal("random", 0.2),
        removal("random", 0.3, draw=1),
    )
    (axes,) = interventions_figure(AuditTables(facts=AUDIT.facts, interventions=rows)).axes

    assert [bar.get_height() for bar in axes.patches] == pytest.approx([0.4, 0.25])
    assert set(line(axes, "nothing removed").get_ydata()) == {0.5}
    segments = [c.get_segments()[0][:, 1].tolist() for c in axes.collections]
    # the interval of reasoning, and the mean ends of .1-.3 and .2-.4
    assert segments == [pytest.approx([0.3, 0.5]), pytest.approx([0.15, 0.35])]
    assert axes.get_ylabel() == "accuracy of new answers"


def test_interventions_have_a_panel_for_each_measure_and_a_place_for_each_set_of_layers() -> None:
    figure = interventions_figure(AUDIT)

    assert [axes.get_ylabel() for axes in figure.axes] == [
        "accuracy of new answers",
        "log-probability (nats a token)",
    ]
    places = [text.get_text() for text in figure.axes[0].get_xticklabels()]
    assert places == ["3-5\nm 4", "last\nm 4"]
    assert len(figure.axes[0].patches) == 6


def test_random_removals_of_equal_energy_stand_beside_the_one_they_are_equal_to() -> None:
    energy = {"measure": "energy_removed"}
    rows = (
        removal("reasoning", 0.4),
        removal("random", 0.3),
        removal("random_energy", 0.2, m=11),
        removal("random_energy", 0.1, m=3, draw=1),  # half the energy: no control, not drawn
        removal("reasoning", 0.5, **energy),
        removal("random_energy", 0.55, m=11, **energy),
        removal("random_energy", 0.25, m=3, draw=1, **energy),
    )
    (axes,) = interventions_figure(AuditTables(facts=AUDIT.facts, interventions=rows)).axes

    assert [bar.get_height() for bar in axes.patches] == pytest.approx([0.4, 0.3, 0.2])
    assert [text.get_text() for text in axes.get_xticklabels()] == ["all\nm 4"]


def test_the_place_of_a_removal_says_how_it_was_done() -> None:
    rows = (
        removal("reasoning", 0.4),
        removal("reasoning", 0.3, fill="mean"),
        removal("reasoning", 0.2, fill="mean", spare_first=True),
    )
    (axes,) = interventions_figure(AuditTables(facts=AUDIT.facts, interventions=rows)).axes

    assert [text.get_text() for text in axes.get_xticklabels()] == [
        "all\nm 4",
        "all\nm 4\nmean put back",
        "all\nm 4\nmean put back\nfirst token left",
    ]


def test_interventions_of_other_measures_alone_are_left_out() -> None:
    rows = (removal("reasoning", 0.4, measure="energy_removed"),)

    assert interventions_figure(AuditTables(facts=AUDIT.facts, interventions=rows)) is None
