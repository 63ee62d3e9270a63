"""Members of an ensemble from one reading: the same method on different prompts.

A linear head has one optimum, so another seed gives the very same head: members must differ in their
data. Each gets a random 63 % of the training prompts, drawn without replacement: as many different ones as
a bootstrap sample of them holds (1 - 1/e). Copies, as a bootstrap has them, would stand on both sides of
the folds that choose a penalty.

Sources: bagging, Breiman 1996; without replacement, Buehlmann & Yu 2002; ensembles of reward models,
arXiv 2310.02743.

    >>> from retrm.fitting.ensemble import member_rows
    >>> [len(rows) for rows in member_rows(["p", "p", "q", "q", "r", "r"], 2, seed=0)]
    [4, 4]
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from retrm.data.split import split_by_prompt
from retrm.errors import FitError, RetrmError
from retrm.scorers.ensemble import EnsembleRule, EnsembleScorer
from retrm.scorers.reward_model import RewardModel

SHARE = 1 - 1 / math.e  # different prompts of a bootstrap sample


def check_n_members(n_members: int) -> None:
    """Refuse an ensemble of one.

    Raises:
        FitError: neither 0 (none) nor 2 or more.
    """
    if n_members < 0 or n_members == 1:
        raise FitError(
            f"got {n_members} ensemble member(s); expected 0 (no ensemble), or 2 and more"
        )


def member_rows(
    prompt_ids: Sequence[object], n_members: int, *, seed: int = 0
) -> tuple[np.ndarray, ...]:
    """Rows of each member: all answers to its prompts.

    Args:
        prompt_ids: (n,) the prompt of every training answer.
        n_members: how many.
        seed: another one draws others.

    Returns:
        One ascending array of row numbers a member.

    Raises:
        FitError: too few prompts to draw from.
    """
    if len({str(one) for one in prompt_ids}) < 3:
        raise FitError(
            "got fewer than 3 training prompts; an ensemble expected more, since its members are fitted "
            "on different ones. Bring more prompts, or leave the ensemble out"
        )
    # The split by prompt does not depend on the order of rows; its seed is not that of the held-out part.
    return tuple(
        split_by_prompt(prompt_ids, (SHARE, 1 - SHARE), seed=seed + 1 + member)[0]
        for member in range(n_members)
    )


def check_members(
    prompt_ids: Sequence[object],
    check_one: Callable[[np.ndarray, int], None],
    *,
    n_members: int,
    seed: int = 0,
) -> None:
    """Refuse an ensemble of which a member would have nothing to learn from; needs no features.

    Args:
        prompt_ids: (n,) the prompt of every training answer.
        check_one: refuses rows, of these answers, and a seed that no model can be fitted with.
        n_members: how many.
        seed: of the draws.

    Raises:
        FitError: too few prompts, or a member that cannot be fitted; says which.
    """
    for number, rows in enumerate(member_rows(prompt_ids, n_members, seed=seed)):
        try:
            check_one(rows, seed + 1 + number)
        except RetrmError as error:
            raise FitError(
                f"member {number + 1} of {n_members} of the ensemble has {len(rows)} answers: {error}. Bring "
                "more prompts, or leave the ensemble out"
            ) from error


def fit_members(
    train: np.ndarray,
    prompt_ids: Sequence[object],
    fit_one: Callable[[np.ndarray, int], RewardModel],
    *,
    n_members: int,
    seed: int = 0,
    rule: EnsembleRule | None = None,
    name: str = "ensemble",
) -> EnsembleScorer:
    """The ensemble of one method.

    Args:
        train: rows of the table to draw from.
        prompt_ids: (len(train),) their prompts.
        fit_one: a reward model from rows of the table and a seed.
        n_members: how many.
        seed: of the draws; each member's own fit has another.
        rule: how they become one score.
        name: of the ensemble.

    Raises:
        FitError, LabelError: as `fit_one`, or too few prompts.
    """
    drawn = member_rows(prompt_ids, n_members, seed=seed)
    models = [fit_one(train[rows], seed + 1 + number) for number, rows in enumerate(drawn)]
    return EnsembleScorer.of_models(models, rule=rule, name=name)
