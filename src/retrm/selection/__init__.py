"""Which of N candidates to keep: rules on plain arrays, without torch and without a model.

`RULES` lists them; each takes (scores, keys, lengths, other) of ONE prompt and returns a
`Selection`. `apply` runs a rule over a whole table and counts ties, abstentions and candidates
without an answer. Ties go to the first seen, everywhere.

    >>> from retrm.selection import apply
    >>> kept = apply("majority", ["p", "p", "p", "q"], keys=["7", "8", "8", None])
    >>> kept.rows, kept.n_abstained
    ((1, None), 1)
"""

from collections.abc import Mapping, Sequence

from retrm.selection.best_of_n import best_of_n
from retrm.selection.candidates import RuleSpec, Selection
from retrm.selection.combination import minmax_combination, rank_combination
from retrm.selection.length_signal import LengthSignal, length_signal
from retrm.selection.many import Selections, apply_rule
from retrm.selection.objectives import (
    Constraint,
    pareto,
    pareto_front,
    parse_constraint,
    parse_weights,
    weighted_scores,
)
from retrm.selection.shortest_majority import shortest_majority, shortest_majority_reward
from retrm.selection.vote import majority, top_m_majority, weighted_vote

__all__ = [
    "RULES",
    "Constraint",
    "LengthSignal",
    "RuleSpec",
    "Selection",
    "Selections",
    "apply",
    "best_of_n",
    "length_signal",
    "majority",
    "minmax_combination",
    "pareto",
    "pareto_front",
    "parse_constraint",
    "parse_weights",
    "rank_combination",
    "shortest_majority",
    "shortest_majority_reward",
    "top_m_majority",
    "weighted_scores",
    "weighted_vote",
]

RULES: dict[str, RuleSpec] = {
    "best_of_n": RuleSpec(best_of_n, ("scores",), (), False, "the top-scored candidate"),
    "majority": RuleSpec(majority, ("keys",), (), True, "the answer given most often"),
    "weighted_vote": RuleSpec(
        weighted_vote,
        ("scores", "keys"),
        ("weights", "tau"),
        True,
        "the answer with the largest sum of sigmoid(score), or of softmax weights",
    ),
    "top_m_majority": RuleSpec(
        top_m_majority,
        ("scores", "keys"),
        ("m",),
        True,
        "majority among the m best-scored candidates",
    ),
    "shortest_majority": RuleSpec(
        shortest_majority,
        ("keys", "lengths"),
        (),
        True,
        "votes over log mean length; helps only where right answers are shorter",
    ),
    "shortest_majority_reward": RuleSpec(
        shortest_majority_reward,
        ("scores", "keys", "lengths"),
        (),
        True,
        "sum of sigmoid(score) over log mean length; ours, unproven",
    ),
    "rank_combination": RuleSpec(
        rank_combination,
        ("scores", "other"),
        ("ties",),
        False,
        "two scorers: the candidate whose worse rank is best",
    ),
    "minmax_combination": RuleSpec(
        minmax_combination,
        ("scores", "other"),
        (),
        False,
        "two scorers: the best mean of min-max scaled scores",
    ),
    "pareto": RuleSpec(
        pareto,
        ("objectives",),
        (),
        False,
        "several objectives: of the candidates that none dominates, the best worst rank",
    ),
}


def apply(
    rule: str,
    prompt_ids: Sequence[str],
    *,
    scores: Sequence[float] | None = None,
    keys: Sequence[str | None] | None = None,
    lengths: Sequence[float] | None = None,
    other: Sequence[float] | None = None,
    objectives: Sequence[Sequence[float]] | None = None,
    allowed: Sequence[bool] | None = None,
    options: Mapping[str, object] | None = None,
    fallback_to_best_of_n: bool = False,
) -> Selections:
    """Apply a rule to every prompt of a table.

    Args:
        rule: a name in `RULES`.
        prompt_ids: (n,) the prompt of every row; rows of a prompt need not be neighbours.
        scores: (n,) finite scores.
        keys: (n,) canonical answers, None = none found.
        lengths: (n,) response tokens.
        other: (n,) finite scores of a second scorer.
        objectives: (n, K) finite scores of several objectives.
        allowed: (n,) rows that may be kept; the others take no part, and a prompt without any abstains,
            counted as `n_forbidden` and `n_without_allowed`. None = all.
        options: the rule's own options by name, for example {"tau": 0.5, "weights": "softmax"}.
        fallback_to_best_of_n: let best_of_n decide where a vote abstains; counted in the result.

    Raises:
        RecipeError: unknown rule or option, a needed column is missing, or a fallback that cannot
            be.
        ScoreError: a score is NaN or infinite; names the prompt and the position in it.
        DataError: columns of different length, or no rows.
    """
    columns = {"scores": scores, "keys": keys, "lengths": lengths, "other": other}
    return apply_rule(
        *(rule, RULES, prompt_ids, columns),
        objectives=objectives,
        allowed=allowed,
        options=options or {},
        fallback_to_best_of_n=fallback_to_best_of_n,
    )
