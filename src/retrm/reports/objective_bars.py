"""Which objectives set two answers apart, as bars in a table that needs no script.

    score_a - score_b = sum_k (c_ak - c_bk),    one row an objective, the largest difference first

Names of objectives are those of strangers: they are escaped.
"""

from html import escape

from retrm.heads.explanation import Explanation, ObjectiveDifference

MOST_BARS = 8


def decided_html(one: Explanation, other: Explanation, *, names: tuple[str, str]) -> str:
    """A table with a bar an objective; small ones beyond eight stand behind a line that opens.

    Args:
        one: of the first answer.
        other: of the second, by the same model.
        names: of the two, as they are called around the table.

    Raises:
        RecipeError: they were judged by different objectives.
    """
    rows = one.minus(other)
    own = dict(zip(one.objectives, one.contributions, strict=True))
    theirs = dict(zip(other.objectives, other.contributions, strict=True))
    reach = abs(rows[0].difference)
    cells = [_row(row, own[row.objective], theirs[row.objective], reach) for row in rows]
    total = (
        "<tfoot><tr><th scope=row class=name>together</th><td></td><td class=number>"
        f"{_signed(one.score - other.score)}</td><td class=how>{_minus(one.score, other.score)}</td>"
        "</tr></tfoot>"
    )
    few, rest = rows[MOST_BARS:], ""
    if few:
        together = _signed(sum(row.difference for row in few))
        rest = (
            f"<details class=print><summary>{len(few)} more of these, smaller; together {together}"
            f"</summary>{_table(names, cells[MOST_BARS:])}</details>"
        )
    return f"<div class=decided>{_table(names, cells[:MOST_BARS], total)}{rest}</div>"


def _table(names: tuple[str, str], cells: list[str], total: str = "") -> str:
    first, second = map(escape, names)
    return (
        "<table class=bars><colgroup><col class=name><col><col class=number><col class=how></colgroup>"
        "<thead><tr><th scope=col class=name>what each objective adds</th>"
        f"<th scope=col colspan=2>← for “{second}” · for “{first}” →</th>"
        f"<th scope=col class=how>difference</th></tr></thead><tbody>{''.join(cells)}</tbody>"
        f"{total}</table>"
    )


def _row(row: ObjectiveDifference, own: float, other: float, reach: float) -> str:
    return (
        f"<tr><th scope=row class=name>{escape(row.objective)}</th><td>{_bar(row.difference, reach)}</td>"
        f"<td class=number>{_signed(row.difference)}</td><td class=how>{_minus(own, other)}</td></tr>"
    )


def _bar(value: float, reach: float) -> str:
    if not (reach and value):
        return "<div class=track></div>"
    side = "plus" if value > 0 else "minus"
    return (
        f'<div class=track><i class={side} style="width:{50 * abs(value) / reach:.1f}%"></i></div>'
    )


def _shown(value: float) -> str:
    return f"{value:.3g}".replace("-", "−")


def _signed(value: float) -> str:
    return f"{'+' if value >= 0 else ''}{_shown(value)}"


def _minus(own: float, other: float) -> str:
    return f"{_shown(own)} − {f'({_shown(other)})' if other < 0 else _shown(other)}"
