"""Power laws over runs: a fit by hand, the frontier, what is read from folders, the picture, the command line."""

import json
import math

import pytest
from command_line import run

from retrm.errors import ArtifactError, DataError, FitError
from retrm.finetuning.power_law import fit_power_law, frontier, scaling
from retrm.reports.scaling_figure import draw_scaling


def test_a_fit_by_hand():
    # log10 x = 0, 1, 2; log10 L = 0, -1, -1. Means 1 and -2/3; S_xx = 2, S_xy = (-1)(2/3) + 0 + (1)(-1/3) = -1,
    # so b = -1/2 and log10 a = -2/3 + 1/2 = -1/6. S_yy = 4/9 + 1/9 + 1/9 = 2/3, r = -1 / sqrt(4/3).
    law = fit_power_law([1, 10, 100], [1, 0.1, 0.1])

    assert law.exponent == pytest.approx(-0.5, abs=1e-12)
    assert law.coefficient == pytest.approx(10 ** (-1 / 6), abs=1e-12)
    assert law.correlation == pytest.approx(-math.sqrt(3) / 2, abs=1e-12)
    assert law.r2 == pytest.approx(0.75, abs=1e-12)


def test_the_papers_law_is_found_again_in_its_own_points():
    sizes = [50e6, 135e6, 500e6, 1e9]
    law = fit_power_law(sizes, [0.9 * n**-0.0425 for n in sizes])

    assert (law.coefficient, law.exponent) == (pytest.approx(0.9), pytest.approx(-0.0425))
    assert law.correlation == pytest.approx(-1)
    assert law.at(135e6) == pytest.approx(0.406, abs=1e-3)


def test_equal_losses_have_no_correlation():
    law = fit_power_law([1, 2, 4], [0.5, 0.5, 0.5])
    assert (law.exponent, law.correlation) == (0, 0)


@pytest.mark.parametrize(
    ("x", "losses", "said"),
    [
        ([1, 2, 2], [1, 1, 1], "2 different sizes"),
        ([1, 2, 3], [1, 0, 1], "above 0"),
        ([1, 2, 3], [1, 1], "3 sizes and 2 losses"),
        ([1, 2, math.nan], [1, 1, 1], "finite"),
    ],
)
def test_points_without_a_law_are_refused(x, losses, said):
    with pytest.raises(FitError, match=said):
        fit_power_law(x, losses)


def test_the_frontier_holds_what_no_cheaper_point_reaches():
    points = [(3.0, 0.5), (1.0, 0.6), (2.0, 0.65), (4.0, 0.5), (5.0, 0.4)]
    assert frontier(points) == ((1.0, 0.6), (3.0, 0.5), (5.0, 0.4))


def finished(path, n: int, loss: float, *, curve=(), test_sha="same", **changes):
    path.mkdir(parents=True)
    facts = {"n_parameters": n, "flops": 10.0 * n, "steps": 10, "test_loss": loss, **changes}
    (path / "done.json").write_text(json.dumps({k: v for k, v in facts.items() if v is not None}))
    (path / "config.json").write_text(json.dumps({"test_sha": test_sha}))
    rows = [{"step": step, "eval_loss": value} for step, value in curve]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def runs(tmp_path):
    return [
        finished(tmp_path / "small", 10, 0.6, curve=[(5, 0.65), (10, 0.9)]),
        finished(tmp_path / "large", 1000, 0.4),
        finished(tmp_path / "middle", 100, 0.5, curve=[(1, 0.62)]),
    ]


def test_runs_become_points_and_curves(runs):
    found = scaling(runs)

    assert [run.name for run in found.runs] == ["small", "middle", "large"]
    # Half of 100 FLOP at step 5; the end is the loss that was measured there, not the one that was logged.
    assert found.runs[0].curve == ((50.0, 0.65), (100.0, 0.6))
    # A tenth of 1,000 at step 1 costs as much as the whole small run and is worse.
    assert found.frontier == ((50.0, 0.65), (100.0, 0.6), (1000.0, 0.5), (10000.0, 0.4))
    assert found.by_compute.n == 4
    assert found.by_parameters.exponent < 0


def test_runs_that_cannot_be_compared_are_refused(runs, tmp_path):
    with pytest.raises(DataError, match="measured on other rows"):
        scaling([*runs, finished(tmp_path / "other", 5, 0.7, test_sha="else")])
    with pytest.raises(DataError, match="--test"):
        scaling([finished(tmp_path / "untested", 5, 0.7, test_loss=None)])
    with pytest.raises(ArtifactError, match="lacks flops"):
        scaling([finished(tmp_path / "strange", 5, 0.7, flops=None)])
    with pytest.raises(ArtifactError, match="not over"):
        scaling([tmp_path / "missing"])
    with pytest.raises(FitError, match="three at least"):
        scaling(runs[:2])


def test_the_picture_is_drawn(runs, tmp_path):
    pytest.importorskip("matplotlib")
    draw_scaling(scaling(runs), tmp_path / "scaling.png")

    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_line_prints_laws(runs, capsys):
    assert run("polar", "scaling", *runs, "--json") == 0
    assert json.loads(capsys.readouterr().out)["by_parameters"]["n"] == 3

    assert run("polar", "scaling", runs[0]) == 2
    assert "three at least" in capsys.readouterr().err
