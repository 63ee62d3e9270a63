"""What is known of scorers beside their figures, as parts of a page: biases, calibration, best of N."""

from collections.abc import Callable, Sequence
from html import escape
from typing import TYPE_CHECKING

from retrm.evaluation.bias import BiasFigure, BiasPanel
from retrm.evaluation.calibration import Calibration, Reliability
from retrm.evaluation.findings import Findings
from retrm.evaluation.over_optimisation import OverOptimisation
from retrm.metrics import Interval
from retrm.reports.canvas import png_bytes
from retrm.reports.evaluation_figures import bias_figure, curve_figure, reliability_figure
from retrm.reports.evaluation_words import interval_words, listed, scorer_name
from retrm.reports.page_parts import image
from retrm.reports.words import NONE, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BIASES = (
    "Is a cue paid for? Accuracy on pairs in which the preferred answer has more of it, minus accuracy "
    "on pairs in which it has less: right of zero the cue is paid for, left of zero it is punished."
)
_RELIABILITY = (
    "Does the margin say how sure one may be? Of pairs with about the same predicted probability, the "
    "share in which the higher-scored answer is the preferred one. Hollow: raw margins; filled: after "
    "one temperature, fitted on the other half of the prompts. On the diagonal, the number can be taken "
    "at its word."
)
_CURVES = (
    "Does more searching help? Above, the mean label of the best-scored of N candidates, an exact "
    "expectation over all subsets. Below, how far its mean score has risen meanwhile. Where the label "
    "falls while the score rises, the scorer is over-optimised."
)


def panels_html(findings: Sequence[Findings]) -> str:
    """Biases, calibration and curves of all scorers of one benchmark; what does not apply is left out."""
    return _bias(findings) + _side_by_side(_calibration(findings), _curves(findings))


def _side_by_side(*parts: str) -> str:
    shown = [part for part in parts if part]
    if len(shown) < 2:
        return "".join(shown)
    return f"<div class=pair>{''.join(f'<div>{part}</div>' for part in shown)}</div>"


def _figure(
    draw: "Callable[[Sequence[Findings]], Figure | None]",
    findings: Sequence[Findings],
    words: str,
    kind: str = "plot",
) -> str:
    drawn = draw(findings)
    if drawn is None:
        return ""
    return (
        f'<figure><div class="{kind}">{image(png_bytes(drawn), words)}</div>'
        f"<figcaption>{escape(words)}</figcaption></figure>"
    )


# ---------------------------------------------------------------------------------------- biases


def _bias(findings: Sequence[Findings]) -> str:
    panels = [one.bias for one in findings if one.bias is not None]
    if not panels:
        return ""
    notes = list(dict.fromkeys(note for panel in panels for note in panel.notes))
    tables = "".join(
        f"<details><summary>Every figure of {escape(scorer_name(panel.scorer))}</summary>"
        f"{_bias_table(panel)}</details>"
        for panel in panels
    )
    return (
        f"<h3>Biases</h3>{_length(panels)}{_figure(bias_figure, findings, _BIASES, 'plot wide')}{tables}"
        f"<p class=muted>{escape('; '.join(notes).capitalize())}.</p>"
    )


_LENGTH = {
    "correlation with score, all answers": "correlation of score and length, all answers",
    "correlation with score, inside items": "the same inside items",
    "accuracy, like lengths": "accuracy at like lengths (10 %)",
    "accuracy at zero difference": "accuracy at equal length, fitted",
}


def _length(panels: Sequence[BiasPanel]) -> str:
    """What length alone does, a line a scorer."""
    body = "".join(
        f"<tr><th scope=row>{escape(scorer_name(panel.scorer))}</th>"
        + "".join(_cell(panel.of("length").get(metric)) for metric in _LENGTH)
        + "</tr>"
        for panel in panels
    )
    head = "".join(f"<th>{escape(words)}</th>" for words in _LENGTH.values())
    return (
        "<div class=scroll><table class=figures><thead><tr><th></th>"
        f"{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _bias_table(panel: BiasPanel) -> str:
    lines = []
    for cue in panel.cues:
        found = panel.of(cue)
        lines += [
            f"<tr><th scope=row>{escape(cue)}<span>{escape(metric)}</span></th>"
            f"<td>{one.n:,}</td>{_cell(one)}</tr>"
            for metric, one in found.items()
        ]
    return (
        "<div class=scroll><table class=figures><thead><tr><th>cue</th><th>n</th><th>value</th></tr>"
        f"</thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _cell(found: BiasFigure | None) -> str:
    return _interval(None if found is None else found.value)


def _interval(found: Interval | None) -> str:
    if found is None:
        return f"<td>{NONE}</td>"
    return f"<td><b>{number(found.value)}</b><span>{interval_words(found)}</span></td>"


# ---------------------------------------------------------------------- calibration and best of N


def _calibration(findings: Sequence[Findings]) -> str:
    known = [one.calibration for one in findings if one.calibration is not None]
    if not known:
        return ""
    body = "".join(_calibration_lines(one) for one in known)
    return (
        f"<h3>Calibration</h3>{_figure(reliability_figure, findings, _RELIABILITY)}"
        "<div class=scroll><table class=figures><thead><tr><th></th><th>ECE</th><th>Brier</th>"
        f"<th>log loss</th></tr></thead><tbody>{body}</tbody></table></div>"
    )


def _calibration_lines(one: Calibration) -> str:
    first, second = (f"{1 / b:.3g}" if b > 0 else "" for b in one.inverse_temperatures)
    words = f"after T = {first} and {second}"
    after: Reliability | None = one.after
    if one.no_temperature:
        words, after = f"no temperature: {one.no_temperature}", None
    return "".join(
        f"<tr><th scope=row>{escape(scorer_name(one.scorer))}<span>{escape(said)}</span></th>"
        f"{_reliability(side)}</tr>"
        for said, side in (("raw margins", one.before), (words, after))
    )


def _reliability(side: Reliability | None) -> str:
    figures = (None,) * 3 if side is None else (side.ece, side.brier, side.log_loss)
    return "".join(map(_interval, figures))


def _curves(findings: Sequence[Findings]) -> str:
    known = [one.curve for one in findings if one.curve is not None and one.kind == "scorer"]
    if not known:
        return ""
    lines = "".join(f"<li>{escape(curve_words(one))}</li>" for one in known)
    notes = list(dict.fromkeys(note for one in known for note in one.notes))
    more = f"<p class=muted>{escape(listed(notes))}</p>" if notes else ""
    return f"<h3>Best of N</h3>{_figure(curve_figure, findings, _CURVES)}<ul>{lines}</ul>{more}"


def curve_words(one: OverOptimisation) -> str:
    """Where the curve is highest, and what is lost behind."""
    name, n = scorer_name(one.scorer), len(one.points)
    loss = f"{number(one.loss.value)} {interval_words(one.loss)}"
    if one.best_n == n:
        return f"{name}: highest at the end, N = {n:,}; loss {loss}."
    return f"{name}: highest at N = {one.best_n:,}; {loss} lost from there to N = {n:,}."
