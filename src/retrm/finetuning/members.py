"""Several trainings from one initialisation, as one reward model.

    warm              the mean of their weights: one model, no dearer than one (`averaging`)
    mean, min, uwo    their scores as one, each member put on one scale first (`retrm.scorers.ensemble`)

Members differ in the order of their rows alone. They lie in `member-1`, `member-2`, ... and are runs of their
own: a killed one goes on, finished ones are left as they are.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from retrm.errors import RecipeError, did_you_mean
from retrm.finetuning.averaging import average_weights
from retrm.finetuning.finetune import Finetuned
from retrm.finetuning.run_folder import RunFolder
from retrm.scorers.ensemble import EnsembleRule, write_ensemble

Combination = Literal["warm", "mean", "min", "uwo"]
N_SCALE = 256


@dataclass(frozen=True)
class Members:
    """Trained members and what they became.

    Attributes:
        runs: of the members.
        scorer: what `open_scorer` takes: `hf:DIR/model` for WARM, else the folder of the ensemble.
    """

    runs: tuple[Finetuned, ...]
    scorer: str


def check_members(n: int, combination: str) -> None:
    """Refuse a number of members or a combination that is none.

    Raises:
        RecipeError: says which are there.
    """
    if n < 2:
        raise RecipeError(f"got {n} member(s); expected two or more, or no --members at all")
    if combination not in get_args(Combination):
        raise RecipeError(
            f"got combine={combination!r}. {did_you_mean(combination, get_args(Combination))}"
        )


def train_members(
    folder: Path,
    n: int,
    combination: Combination,
    train: Callable[[RunFolder, int, int], Finetuned],
    *,
    lam: float = 0.5,
) -> Members:
    """Train all members and put them together.

    Args:
        folder: of all of them.
        n: members.
        combination: what they become.
        train: called with the folder of a member, its number from 0, and how many answers its scale is
            taken from.
        lam: of `uwo`.

    Raises:
        RecipeError: fewer than two members, or an unknown combination.
    """
    check_members(n, combination)
    is_warm = combination == "warm"
    names = [f"member-{number}" for number in range(1, n + 1)]
    runs = tuple(
        train(RunFolder(folder / name), i, 0 if is_warm else N_SCALE)
        for i, name in enumerate(names)
    )
    if is_warm:
        made = average_weights([folder / name for name in names], folder / "model")
        return Members(runs, f"hf:{made}")
    rule = EnsembleRule(combination, lam)  # type: ignore[arg-type]
    write_ensemble(folder, [f"hf:{name}/model" for name in names], rule)
    return Members(runs, str(folder))
