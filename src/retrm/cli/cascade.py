"""`retrm cascade`: what a judge behind a cheap scorer saves, measured on pairs."""

import hashlib
from typing import Any

from retrm.cli.console import err, out, print_json, print_summaries, progress, table
from retrm.cli.options import Output


def cascade(
    scorer: str,
    judge: str,
    data: str,
    /,
    *,
    output: Output,
    limit: int | None = None,
    model: str | None = None,
    device: str = "cpu",
    seed: int = 0,
    json: bool = False,
) -> None:
    """Accuracy on pairs against the number of judge calls, those pairs first where SCORER is least sure.

    The judge is asked of all pairs once (what it wrote is kept in its cache); the curve says what a
    cascade of any margin would have got. Written: curve.json, curve.png, and pairs.jsonl with every gap
    and verdict. Use the margin that you like as cascade:MARGIN,SCORER,JUDGE.

    Parameters
    ----------
    scorer
        Any scorer; a folder made by retrm fit, for example.
    judge
        judge:MODEL?template=NAME&...
    data
        Pairs, or answers with labels: then every right answer of a prompt against every wrong one.
    output
        Folder to write.
    limit
        Only so many pairs, drawn with the seed.
    model
        Where the backbone of the scorer's folder lies now.
    device
        cpu, cuda, cuda:1, ...
    seed
        Of the intervals and of --limit.
    json
        Print the curve as one JSON object on stdout.
    """
    from retrm.data.load import load_table
    from retrm.errors import RecipeError
    from retrm.evaluation.cascade import cascade_curve
    from retrm.files import check_writable, write_json, write_json_lines
    from retrm.reports.canvas import check_plotting
    from retrm.reports.cascade import cascade_png
    from retrm.scorers.judge import PREFIX, JudgeSpec, open_judge, pair_of
    from retrm.scorers.open import open_scorer, shown_spec
    from retrm.scorers.together import judge_all

    if not judge.startswith(PREFIX):
        raise RecipeError(f"got {judge!r}; expected judge:MODEL?template=NAME")
    JudgeSpec.parse(judge.removeprefix(PREFIX)).check()
    if limit is not None and limit < 1:
        raise RecipeError(f"got --limit {limit}; expected 1 or more")
    check_writable(output)
    check_plotting()
    answers = load_table(data).judged()
    pairs = _drawn(_pairs_of(answers, data), answers, limit, seed)
    rows = sorted({row for pair in pairs for row in pair})
    cheap = open_scorer(scorer, model=model, device=device)
    found = judge_all({"cheap": cheap}, [answers.answers[row] for row in rows])["cheap"].scores
    scores = dict(zip(rows, found.tolist(), strict=True))
    asked = open_judge(judge, device=device)
    with progress("judging") as report:
        asked.on_progress = lambda done, total: report(done, total, "replies")
        outcomes = asked.compare([pair_of(answers.answers, *pair) for pair in pairs])
    ids = [answers.answers[a].prompt_id for a, _ in pairs]
    curve = cascade_curve(
        [scores[a] - scores[b] for a, b in pairs],
        [outcome.points for outcome in outcomes],
        ids,
        calls_per_pair=asked.n_calls(2),
        n_unread=sum(outcome.winner is None for outcome in outcomes),
        seed=seed,
    )
    facts = {
        "scorer": shown_spec(scorer),
        "judge": shown_spec(judge),
        "data": data,
        "limit": limit,
        "seed": seed,
        "counts": asked.counts.as_dict(),
    }
    write_json(output / "curve.json", {**facts, **curve.as_dict()})
    write_json_lines(
        output / "pairs.jsonl",
        (
            _row(answers, pair, scores, outcome)
            for pair, outcome in zip(pairs, outcomes, strict=True)
        ),
    )
    cascade_png(output / "curve.png", curve, title=f"{shown_spec(scorer)}, then a judge")
    print_summaries([asked])
    if json:
        print_json(curve.as_dict())
        return
    cells = [
        [
            f"{p.share:.2f}",
            f"{p.margin:.4g}" if p.margin >= 0 else "-",
            f"{p.n_calls:,}",
            f"{p.accuracy.value:.3f} [{p.accuracy.low:.3f}, {p.accuracy.high:.3f}]",
            f"{p.at_random:.3f}",
        ]
        for p in curve.points
    ]
    columns = ["asked", "margin", "calls", "accuracy", "at random"]
    out.print(table("cascade", columns, cells))
    err.print(f"everything in figures: {output / 'curve.json'}", markup=False)


def _pairs_of(answers: Any, data: str) -> list[tuple[int, int]]:
    """(right, wrong) rows: the preferences, else right against wrong answers."""
    from retrm.errors import LabelError

    pairs = [(pair.chosen, pair.rejected) for pair in answers.preferences()]
    if not pairs:
        for group in answers.candidate_sets():
            right, wrong = (
                [row for row in group.rows if answers.labels[row] == kind] for kind in (1, 0)
            )
            pairs += [(a, b) for a in right for b in wrong]
    if not pairs:
        raise LabelError(
            f"{data} has no pairs and no prompt with a right and a wrong answer; expected preferences or "
            "labels. Run retrm grade on it first"
        )
    return pairs


def _drawn(
    pairs: list[tuple[int, int]], answers: Any, limit: int | None, seed: int
) -> list[tuple[int, int]]:
    if limit is None or limit >= len(pairs):
        return pairs

    def place(pair: tuple[int, int]) -> bytes:
        texts = [answers.answers[row].response for row in pair]
        return hashlib.sha256(
            repr((seed, answers.answers[pair[0]].prompt_id, texts)).encode()
        ).digest()

    kept = set(sorted(pairs, key=place)[:limit])
    return [pair for pair in pairs if pair in kept]


def _row(
    answers: Any, pair: tuple[int, int], scores: dict[int, float], outcome: Any
) -> dict[str, Any]:
    right, wrong = pair
    return {
        "prompt_id": answers.answers[right].prompt_id,
        "right": answers.answers[right].response,
        "wrong": answers.answers[wrong].response,
        "gap": scores[right] - scores[wrong],
        "points": outcome.points,
        "by_order": list(outcome.by_order),
        "outputs": [
            {
                "shown_first": "wrong" if one.is_swapped else "right",
                "number": one.number,
                "winner": {"first": "right", "second": "wrong"}.get(one.winner, one.winner),
                "problem": one.verdict.problem,
                "text": one.reply.text,
            }
            for one in outcome.readings
        ],
    }
