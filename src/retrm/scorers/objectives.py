"""Scores by objective: of a reward model that mixes objectives, or of several scorers side by side.

    objectives:NAME=SCORER,NAME=SCORER     any scorers, each one objective

What is done with them, weights, constraints, the Pareto set, stands in `retrm.selection.objectives`.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from retrm.errors import RecipeError
from retrm.features.read import read
from retrm.heads.mixture import MixtureHead
from retrm.records import Answer
from retrm.scorers.base import ObjectiveScorer, Scorer
from retrm.scorers.reward_model import RewardModel
from retrm.scorers.together import judge_all, judged


class ObjectivePanel:
    """Several scorers, each one objective; those on one backbone are read once."""

    def __init__(self, members: Mapping[str, Scorer], *, name: str = "objectives") -> None:
        """Put scorers side by side.

        Raises:
            RecipeError: there is none.
        """
        if not members:
            raise RecipeError("got no objectives; expected at least one scorer by name")
        self.members = dict(members)
        self.objectives = tuple(self.members)
        self.name = name

    def objective_scores(self, answers: Sequence[Answer]) -> np.ndarray:
        """(n, K) float64; raises as its scorers do."""
        found = judge_all(self.members, answers)
        return np.stack([judgement.scores for judgement in found.values()], axis=1)

    def score(self, answers: Sequence[Answer]) -> np.ndarray:
        """Refused: nothing says what the objectives weigh.

        Raises:
            RecipeError: always.
        """
        raise RecipeError(
            f"{self.name} gives {len(self.objectives)} scores an answer, one an objective "
            f"({', '.join(self.objectives)}), and no single one; say what they weigh (--weights), or keep "
            "what none dominates (--rule pareto)"
        )


class MixtureObjectives:
    """A reward model with a mixture head, objective by objective: r, before verbosity is taken out.

    The scores as raters would give them, and not the adjusted ones, are steered by: adjusted, verbosity
    itself would be 0 everywhere.
    """

    def __init__(self, model: RewardModel) -> None:
        """Of one model.

        Raises:
            RecipeError: its head mixes no objectives.
        """
        head = model.artifact.head
        if not isinstance(head, MixtureHead):
            raise RecipeError(
                f"{model.name} has the head {head.name}, which gives one score and no objectives; expected a "
                "model made by --method armorm, or several scorers: objectives:NAME=SCORER,NAME=SCORER"
            )
        self.model, self._head = model, head
        self.name = model.name
        self.objectives = tuple(head.objectives)

    def objective_scores(self, answers: Sequence[Answer]) -> np.ndarray:
        """(n, K) float64; raises as `RewardModel.score`."""
        return self.with_scores(answers)[0]

    def with_scores(self, answers: Sequence[Answer]) -> tuple[np.ndarray, np.ndarray]:
        """(n, K) objective scores and (n,) scores of one reading; raises as `RewardModel.score`."""
        if not answers:
            return np.zeros((0, len(self.objectives))), np.zeros(0)
        name, reducer = self.name, self.model.reducer
        reading = read(
            self.model.backbone, answers, {name: reducer.recipe}, reducers={name: reducer}
        )
        with torch.no_grad():
            own, _ = self._head.split(reading.features[name].values.float())
            values = self._head.objective_scores(own).double().numpy()
        return values, judged(name, self.model, answers, reading).scores


def objectives_of(scorer: Scorer) -> ObjectiveScorer:
    """The objectives behind a scorer.

    Raises:
        RecipeError: it has none.
    """
    if isinstance(scorer, RewardModel):
        return MixtureObjectives(scorer)
    if isinstance(scorer, ObjectiveScorer):
        return scorer
    raise RecipeError(
        f"{scorer.name} gives one score and no objectives; expected a model made by --method armorm, or "
        "several scorers: objectives:NAME=SCORER,NAME=SCORER"
    )


def parse_panel(text: str) -> dict[str, str]:
    """``NAME=SCORER,NAME=SCORER`` as a dictionary of what `open_scorer` takes.

    Raises:
        RecipeError: unreadable, or a name twice.
    """
    specs: dict[str, str] = {}
    for part in text.split(","):
        name, equals, spec = (piece.strip() for piece in part.partition("="))
        if not (name and equals and spec):
            raise RecipeError(
                f"got {part.strip()!r} in objectives:{text}; expected NAME=SCORER,NAME=SCORER, such as "
                "helpfulness=runs/help,brevity=shortest"
            )
        if name in specs:
            raise RecipeError(f"objectives:{text} names {name!r} twice; expected each once")
        specs[name] = spec
    return specs
