"""`retrm select`: the answer to keep, per prompt."""

import json as json_module
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from retrm.cli.console import err, print_json, print_summaries, table
from retrm.cli.options import OptionalOutput


def select(
    scorer: str,
    rollouts: str,
    /,
    *,
    rule: str = "best_of_n",
    output: OptionalOutput = None,
    model: str | None = None,
    other: str | None = None,
    weights: str | None = None,
    require: list[str] | None = None,
    vote_weights: str = "sigmoid",
    fallback: bool = False,
    device: str = "cpu",
    json: bool = False,
) -> None:
    """Keep one answer per prompt by a selection rule.

    Rules: best_of_n (highest score), majority, weighted_vote (sum of score weights per answer),
    top_m_majority, shortest_majority (votes over log mean length) and its reward version, and
    rank_combination or minmax_combination of two scorers. Votes need answer keys: retrm grade writes
    them. Where labels are known, the accuracy of the rule is printed beside pass@1 and the oracle.

    Scorers of several objectives (models of armorm, or objectives:NAME=SCORER,NAME=SCORER) can be steered:
    --weights says what the objectives count, --require what a candidate must keep to, and the rule
    pareto keeps a candidate that no other beats in all objectives.

    Parameters
    ----------
    scorer
        Folder made by retrm fit; hf:PATH; `stored` for the scores in the file; ensemble:DIR,DIR;
        calibrated:FILE; objectives:NAME=SCORER,NAME=SCORER; judge:MODEL?template=NAME for a generative
        judge; cascade:MARGIN,SCORER,judge:MODEL for one where SCORER is unsure; or shortest, longest,
        random, log_probability. Rules that use no score accept `none`.
    rollouts
        File of prompts with several answers each; candidates marked as pruned are left out and
        counted.
    rule
        See above.
    output
        JSONL file: prompt_id, the kept response, its score and key, and its index among all answers
        of the file.
    model
        Backbone of log_probability, or where the backbone of the folder lies now.
    other
        Second scorer, for the combination rules.
    weights
        What each objective counts, such as helpfulness=1,verbosity=-0.3; the score is then their sum.
        Others count 0. In the units of the objective scores.
    require
        What a candidate must keep to, such as "verbosity<=0.5" or "helpfulness - 2*verbosity >= 0"; may
        be given several times. Prompts without such a candidate are left without an answer, counted.
    vote_weights
        Of weighted_vote: sigmoid (heads fitted with bce) or softmax (bradley_terry heads).
    fallback
        Let best_of_n decide where a vote finds no answer; counted.
    device
        cpu, cuda, cuda:1, ...
    json
        Print one JSON object on stdout.
    """
    import numpy as np

    from retrm.data.load import load_table
    from retrm.errors import DataError, RecipeError, did_you_mean
    from retrm.selection import RULES, apply
    from retrm.selection.vote import Weights

    if rule not in RULES:
        raise RecipeError(f"unknown rule {rule!r}. {did_you_mean(rule, RULES)}")
    spec = RULES[rule]
    steering = _Steering.of(spec, weights, require)
    if scorer == "none" and ("scores" in spec.needs or steering.needs_objectives):
        raise RecipeError(f"the rule {rule} needs a scorer, got none")
    if "other" in spec.needs and other is None:
        raise RecipeError(f"the rule {rule} combines two scorers; add --other SCORER")
    if vote_weights not in (known := get_args(Weights)):
        raise RecipeError(
            f"got vote_weights={vote_weights!r}; expected {' or '.join(known)}. "
            f"{did_you_mean(vote_weights, known)}"
        )
    from retrm.scorers.open import open_scorer

    whole = load_table(rollouts, ratings="unread")
    # A pruned candidate is part of an answer: it is no choice, whatever score it would get.
    places = [row for row, answer in enumerate(whole.answers) if not answer.pruned]
    answers = whole.take(places)
    keys = [answer.key for answer in answers.answers] if "keys" in spec.needs else None
    if keys is not None and not any(keys):
        raise DataError(
            f"{rollouts} has no answer keys (column `keys`) and the rule {rule} counts votes; run "
            "retrm grade on it first"
        )
    judged = _Judged(None, None, None)
    if scorer != "none":
        made = open_scorer(scorer, model=model, device=device)
        judged = steering.judge(made, answers.answers)
        print_summaries([made])
    scores = judged.scores
    second = (
        open_scorer(other, model=model, device=device).score(answers.answers) if other else None
    )
    kept = apply(
        rule,
        answers.prompt_ids.tolist(),
        scores=scores,
        keys=keys,
        lengths=_lengths(answers) if "lengths" in spec.needs else None,
        other=second,
        objectives=judged.objectives,
        allowed=judged.allowed,
        options={"weights": vote_weights} if "weights" in spec.options else None,
        fallback_to_best_of_n=fallback,
    )
    rows = [
        _row(answers, scores, prompt, row, places)
        for prompt, row in zip(kept.prompt_ids, kept.rows, strict=True)
    ]
    if output is not None:
        _write(output, rows)
    summary: dict[str, Any] = {
        "rule": rule,
        "scorer": scorer,
        "n_prompts": len(rows),
        "n_ties": kept.n_tied,
        "n_abstained": kept.n_abstained,
        "n_without_key": kept.n_without_key,
        "n_pruned": len(whole) - len(answers),
    }
    if require:
        summary |= {
            "n_forbidden": kept.n_forbidden,
            "n_without_allowed": kept.n_without_allowed,
        }
    if not np.isnan(answers.labels).any() and np.isin(answers.labels, (0, 1)).all():
        summary |= _accuracy(answers, kept)
    _print(summary, rows, output, json)


@dataclass(frozen=True)
class _Judged:
    """What a scorer says of the answers; None = not asked for."""

    scores: Any
    objectives: Any
    allowed: Any


@dataclass(frozen=True)
class _Steering:
    """What was asked of the objectives of a scorer."""

    weights: dict[str, float] | None
    constraints: tuple[Any, ...]
    is_rule_of_objectives: bool
    needs_score: bool

    @classmethod
    def of(cls, spec: Any, weights: str | None, require: list[str] | None) -> "_Steering":
        """Refuses what cannot be read, before a model is loaded."""
        from retrm.errors import RecipeError
        from retrm.selection import parse_constraint, parse_weights

        is_of_objectives = "objectives" in spec.needs
        if weights is not None and "scores" not in spec.needs:
            raise RecipeError(
                "--weights make one score of several objectives, and this rule uses no score; use a rule "
                "that does, such as best_of_n, or leave --weights out"
            )
        return cls(
            None if weights is None else parse_weights(weights),
            tuple(parse_constraint(text) for text in require or ()),
            is_of_objectives,
            weights is None and "scores" in spec.needs,
        )

    @property
    def needs_objectives(self) -> bool:
        return self.weights is not None or bool(self.constraints) or self.is_rule_of_objectives

    def judge(self, scorer: Any, answers: Any) -> _Judged:
        """One reading of the answers."""
        import numpy as np

        from retrm.scorers.objectives import MixtureObjectives, objectives_of
        from retrm.selection import weighted_scores
        from retrm.selection.objectives import check_weights

        if not self.needs_objectives:
            return _Judged(scorer.score(answers), None, None)
        panel = objectives_of(scorer)
        sums = [one.coefficients for one in self.constraints]
        for named in sums if self.weights is None else [self.weights, *sums]:
            check_weights(named, panel.objectives)  # before hours of reading
        if isinstance(panel, MixtureObjectives):
            values, scores = panel.with_scores(answers)
        else:
            values = panel.objective_scores(answers)
            scores = scorer.score(answers) if self.needs_score else None
        if self.weights is not None:
            scores = weighted_scores(values, panel.objectives, self.weights)
        keeps = [one.holds(values, panel.objectives) for one in self.constraints]
        return _Judged(scores, values, np.all(keeps, axis=0) if keeps else None)


def _lengths(answers: Any) -> list[int]:
    # One unit for the whole file: sampled tokens where every row has them, else characters.
    rows = answers.answers
    if all(answer.response_ids is not None for answer in rows):
        return [len(answer.response_ids) for answer in rows]
    return [len(answer.response) for answer in rows]


def _row(
    answers: Any, scores: Any, prompt: str, row: int | None, places: list[int]
) -> dict[str, Any]:
    if row is None:
        return {"prompt_id": prompt, "response": None, "score": None, "key": None, "index": None}
    answer = answers.answers[row]
    return {
        "prompt_id": prompt,
        "response": answer.response,
        "score": None if scores is None else float(scores[row]),
        "key": answer.key,
        "index": places[row],
    }


def _accuracy(answers: Any, kept: Any) -> dict[str, Any]:
    from retrm.metrics import best_of_k_statistic, clustered_bootstrap, mean_statistic

    ids = answers.prompt_ids
    found = clustered_bootstrap(mean_statistic(kept.chosen_labels(answers.labels), kept.prompt_ids))
    return {
        "accuracy": found.value,
        "accuracy_low": found.low,
        "accuracy_high": found.high,
        "pass_at_1": clustered_bootstrap(
            mean_statistic(answers.labels, ids, weighting="prompt")
        ).value,
        "oracle": clustered_bootstrap(
            best_of_k_statistic(answers.labels, answers.labels, ids)
        ).value,
    }


def _write(output: Path, rows: list[dict[str, Any]]) -> None:
    from retrm.files import atomic_write

    with atomic_write(output, "w") as file:
        for row in rows:
            file.write(json_module.dumps(row, ensure_ascii=False) + "\n")


def _print(
    summary: dict[str, Any], rows: list[dict[str, Any]], output: Path | None, json: bool
) -> None:
    if json:
        print_json({**summary, "selected": rows} if output is None else summary)
        return
    if output is None:
        for row in rows:
            shown = "(abstained)" if row["response"] is None else row["response"]
            sys.stdout.write(f"{row['prompt_id']}\t{' '.join(shown.split())}\n")
    cells = [
        [name.replace("_", " "), f"{value:.3f}" if isinstance(value, float) else value]
        for name, value in summary.items()
    ]
    err.print(table("selection", ["", "value"], cells))
