"""Does a head read the answer, or who wrote it? Two checks on answers of many models.

    python generators.py gsm_models.jsonl --audit DIR -o generators.json

In answers of many models a head can be right by knowing the author, for weak models are mostly wrong,
and within one author it can be right by knowing which questions are easy. No single figure excludes
both, so five stand side by side, each for the full state, the reasoning and the semantic subspace and
random ones of the same width (the names say which singular directions of the LM head are meant; that
the smallest ones hold reasoning is an unproven idea):

    within_prompt     right x wrong pairs of one question; won by knowing the author
    within_generator  AUROC inside each author, mean over authors with right and wrong answers; won by
                      knowing the question
    matched_authors   pairs of one question whose authors are right nearly equally often
    unseen_authors    pairs of one question by authors of a group that was left out of the training
    seen_authors      the same pairs, trained on as many answers that include these authors

`author` is a score that never reads the answer: the share of right answers of its author in training.
`author_accuracy` says how often the author is named rightly from the features. All scores are
out-of-fold by question: no head has seen the question that it is judged on.

Scores of different heads are put on one scale by the mean and deviation of their training scores.
Intervals resample questions with all their answers. They know nothing of chance in the random
subspaces, which stand for the mean of their draws, so `draws` counts how many do at least as well as
the reasoning subspace; a claim takes 19 of them.

The audit must be finished: its states are opened, nothing is read.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Never

import numpy as np
import torch

from retrm.audit.plan import AuditPlan
from retrm.audit.reading import read_answers
from retrm.backbone.base import Backbone
from retrm.backbone.load import load_backbone
from retrm.data.load import load_table
from retrm.data.split import prompt_codes, prompt_folds
from retrm.errors import DataError, RetrmError, StoreError
from retrm.features.subspace import SubspaceSpec, fit_spectrum
from retrm.files import check_new_file, write_json
from retrm.fitting.convex import RowTargets, choose_lambda, fit_linear
from retrm.metrics import (
    AverageStatistic,
    PromptStatistic,
    RatioStatistic,
    clustered_bootstrap,
    fold_auroc_statistic,
    n_at_least_as_good,
    paired_difference,
    point_estimate,
    within_prompt_auroc_statistic,
)

DIGITS = 4
N_FOLDS = 3
N_GROUPS = 4
TOLERANCE = 0.02
METRICS = (
    *("within_prompt", "within_generator", "matched_authors"),
    *("unseen_authors", "seen_authors"),
)


@dataclass(frozen=True)
class Answers:
    """States of answers with what is known about them.

    Attributes:
        features: (n, D) states, float32.
        labels: (n,) 1 right, 0 wrong.
        prompt_ids: (n,) the question of every row.
        generators: (n,) the author of every row.
    """

    features: np.ndarray
    labels: np.ndarray
    prompt_ids: Sequence[str]
    generators: Sequence[str]

    def __post_init__(self) -> None:
        n = {
            "features": len(self.features),
            "labels": len(self.labels),
            "prompt_ids": len(self.prompt_ids),
            "generators": len(self.generators),
        }
        if len(set(n.values())) > 1:
            got = ", ".join(f"{size} {name}" for name, size in n.items())
            raise DataError(f"got {got}; expected one of each for every answer")

    def projected(self, basis: np.ndarray | None) -> "Answers":
        """The same answers, described by (M, D) `basis` @ state; None = the whole state."""
        if basis is None:
            return self
        return Answers(self.features @ basis.T, self.labels, self.prompt_ids, self.generators)


# ----------------------------------------------------------------------------------- heads


def scores_of(
    answers: Answers, train: np.ndarray, test: np.ndarray, *, seed: int = 0
) -> np.ndarray:
    """Scores of the rows `test` by a logistic head fitted on the rows `train`.

    Scores are in deviations from the mean of the training scores.
    """
    weight, bias = _fit(answers, answers.labels, train, seed)
    known = answers.features[train] @ weight + bias
    spread = known.std()
    found = (answers.features[test] @ weight + bias - known.mean()).astype(np.float64)
    return found / spread if spread > 0 else found


def _fit(
    answers: Answers, labels: np.ndarray, train: np.ndarray, seed: int
) -> tuple[np.ndarray, float]:
    """(D,) weight and bias of a logistic head, its penalty chosen over the training questions."""
    x, targets = torch.as_tensor(answers.features[train]), RowTargets(labels[train])
    ids = [answers.prompt_ids[row] for row in train]
    fit = fit_linear(x, targets, lam=choose_lambda(x, targets, ids, seed=seed).lam)
    return fit.weight.numpy(), fit.bias


def out_of_fold(answers: Answers, folds: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """(n,) scores by heads that never saw the question."""
    scores = np.empty(len(answers.labels))
    for fold in np.unique(folds):
        test = np.flatnonzero(folds == fold)
        scores[test] = scores_of(answers, np.flatnonzero(folds != fold), test, seed=seed)
    return scores


def leave_authors_out(
    answers: Answers, folds: np.ndarray, groups: np.ndarray, *, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Scores by heads that never saw the question, without and with answers of the author's group.

    Args:
        answers: all of them.
        folds: (n,) fold of the question of every row.
        groups: (n,) group of the author of every row.
        seed: of the draw that makes both training parts the same size.

    Returns:
        unseen, seen: (n,) scores each. Heads of both kinds are fitted on as many answers.

    Raises:
        DataError: one group only, so that nothing is left to train on.
    """
    if len(np.unique(groups)) < 2:
        raise DataError("got one group of authors; expected at least two, one of which is left out")
    rng = np.random.default_rng(seed)
    unseen, seen = np.empty(len(folds)), np.empty(len(folds))
    for fold in np.unique(folds):
        for group in np.unique(groups):
            test = np.flatnonzero((folds == fold) & (groups == group))
            others = np.flatnonzero((folds != fold) & (groups != group))
            anyone = np.flatnonzero(folds != fold)
            drawn = np.sort(rng.choice(anyone, size=len(others), replace=False))
            unseen[test] = scores_of(answers, others, test, seed=seed)
            seen[test] = scores_of(answers, drawn, test, seed=seed)
    return unseen, seen


def author_scores(answers: Answers, folds: np.ndarray) -> np.ndarray:
    """(n,) share of right answers of the author on the other folds' questions.

    An author without answers there gets the share of all.
    """
    codes, names = prompt_codes(answers.generators)
    scores = np.empty(len(codes))
    for fold in np.unique(folds):
        kept = folds != fold
        size = np.bincount(codes[kept], minlength=len(names))
        right = np.bincount(codes[kept], answers.labels[kept], minlength=len(names))
        share = np.where(size > 0, right / np.maximum(size, 1), answers.labels[kept].mean())
        scores[~kept] = share[codes[~kept]]
    return scores


def named_authors(answers: Answers, folds: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """(n,) 1 where the author is named rightly, out of fold: one head against the rest an author."""
    codes, names = prompt_codes(answers.generators)
    scores = np.stack(
        [
            out_of_fold_probability(answers, codes == author, folds, seed=seed)
            for author in range(len(names))
        ],
        axis=1,
    )
    return (scores.argmax(axis=1) == codes).astype(np.float64)


def out_of_fold_probability(
    answers: Answers, is_author: np.ndarray, folds: np.ndarray, *, seed: int = 0
) -> np.ndarray:
    """(n,) log-odds, unlike `out_of_fold` on the head's own scale, so that authors compare."""
    scores = np.empty(len(folds))
    for fold in np.unique(folds):
        train, test = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        weight, bias = _fit(answers, is_author.astype(np.float64), train, seed)
        scores[test] = answers.features[test] @ weight + bias
    return scores


# ------------------------------------------------------------------------------- statistics


def close_pair_statistic(
    scores: np.ndarray,
    labels: np.ndarray,
    prompt_ids: Sequence[str],
    trait: np.ndarray,
    tolerance: float,
) -> RatioStatistic:
    """Share of right x wrong pairs in the right order, over pairs of one question that are close.

    Args:
        scores: (n,) any scale that is shared by the answers of a pair.
        labels: (n,) 0 or 1.
        prompt_ids: (n,) the question of every row.
        trait: (n,) a number; a pair takes part if the two differ by at most `tolerance`.
        tolerance: 0 or more.

    Returns:
        Every pair counts the same, ties one half; questions are the clusters.

    Raises:
        DataError: no pair is close enough.
    """
    codes, prompts = prompt_codes(prompt_ids)
    won, n_pairs = np.zeros(len(prompts)), np.zeros(len(prompts))
    for code in range(len(prompts)):
        rows = np.flatnonzero(codes == code)
        right, wrong = rows[labels[rows] == 1], rows[labels[rows] == 0]
        # Accuracies are shares: without the slack 0.80 and 0.82 would differ by more than 0.02.
        close = np.abs(trait[right][:, None] - trait[wrong][None, :]) <= tolerance + 1e-9
        gap = scores[right][:, None] - scores[wrong][None, :]
        won[code] = (((gap > 0) + 0.5 * (gap == 0)) * close).sum()
        n_pairs[code] = close.sum()
    if not n_pairs.any():
        raise DataError(
            f"got no pair of a right and a wrong answer to one question within {tolerance}; expected "
            "at least one. Raise the tolerance, or bring more answers"
        )
    return RatioStatistic(prompts, won, n_pairs, int(n_pairs.sum()))


def accuracies(answers: Answers) -> np.ndarray:
    """(n,) share of right answers of the author of every row, over all rows."""
    codes, _ = prompt_codes(answers.generators)
    return (np.bincount(codes, answers.labels) / np.bincount(codes))[codes]


# --------------------------------------------------------------------------------- the study


@dataclass(frozen=True)
class Settings:
    """What a run is determined by.

    Attributes:
        n_folds: folds of questions.
        n_groups: groups of authors, of which one at a time is left out.
        tolerance: largest difference of two authors' accuracies that is nearly equal.
        seed: of folds, groups and draws.
    """

    n_folds: int = N_FOLDS
    n_groups: int = N_GROUPS
    tolerance: float = TOLERANCE
    seed: int = 0


def statistics_of(
    answers: Answers, basis: np.ndarray | None, settings: Settings
) -> dict[str, PromptStatistic]:
    """The five figures of one set of features, each as a statistic over all questions.

    Args:
        answers: with their whole states.
        basis: (M, D) orthonormal rows; None = the whole state.
        settings: of the run.
    """
    mine = answers.projected(basis)
    folds = prompt_folds(answers.prompt_ids, settings.n_folds, settings.seed)
    # Authors are dealt into groups as questions are into folds.
    groups = prompt_folds(answers.generators, settings.n_groups, settings.seed)
    scores = out_of_fold(mine, folds, seed=settings.seed)
    unseen, seen = leave_authors_out(mine, folds, groups, seed=settings.seed)
    return {
        **_shared_statistics(scores, answers, settings),
        "unseen_authors": _same_group(unseen, answers, groups),
        "seen_authors": _same_group(seen, answers, groups),
    }


def _shared_statistics(
    scores: np.ndarray, answers: Answers, settings: Settings
) -> dict[str, PromptStatistic]:
    labels, ids = answers.labels, answers.prompt_ids
    return {
        "within_prompt": within_prompt_auroc_statistic(scores, labels, ids),
        "within_generator": fold_auroc_statistic(scores, labels, ids, answers.generators),
        "matched_authors": close_pair_statistic(
            scores, labels, ids, accuracies(answers), settings.tolerance
        ),
    }


def _same_group(scores: np.ndarray, answers: Answers, groups: np.ndarray) -> RatioStatistic:
    return close_pair_statistic(scores, answers.labels, answers.prompt_ids, groups, 0)


def study(
    answers: Answers, bases: Mapping[str, Sequence[np.ndarray | None]], settings: Settings
) -> dict[str, object]:
    """All figures with intervals, and the paired differences to the random subspaces.

    Args:
        answers: with their whole states.
        bases: by name, the draws of each kind of features: (M, D), or None for the whole state. The
            kind `random` is what `reasoning` is compared with, averaged over its draws.
        settings: of the run.
    """
    folds = prompt_folds(answers.prompt_ids, settings.n_folds, settings.seed)
    found: dict[str, dict[str, PromptStatistic]] = {
        "author": _shared_statistics(author_scores(answers, folds), answers, settings)
    }
    accuracy, by_draw = {}, {}
    for name, draws in bases.items():
        started = time.monotonic()
        each = [statistics_of(answers, basis, settings) for basis in draws]
        by_draw[name] = each
        found[name] = {
            metric: AverageStatistic(tuple(s[metric] for s in each)) for metric in METRICS
        }
        named = [named_authors(answers.projected(b), folds, seed=settings.seed) for b in draws]
        accuracy[name] = float(np.mean(named))
        print(f"{name}: {len(draws)} set(s) of features, {time.monotonic() - started:.0f} s")
    _, n_each = np.unique(np.asarray(answers.generators), return_counts=True)
    return {
        "figures": {
            name: {metric: clustered_bootstrap(s).as_dict(DIGITS) for metric, s in metrics.items()}
            for name, metrics in found.items()
        },
        "author_accuracy": {**accuracy, "most_frequent": float(n_each.max() / n_each.sum())},
        "differences": _differences(found),
        "draws": _draws(found, by_draw.get("random", [])),
    }


def _draws(
    found: Mapping[str, Mapping[str, PromptStatistic]],
    draws: Sequence[Mapping[str, PromptStatistic]],
) -> dict[str, object]:
    """How many random subspaces do at least as well as the reasoning one, in each figure."""
    if "reasoning" not in found or not draws:
        return {"n": 0, "at_least_as_good": {}}
    counts = {
        metric: n_at_least_as_good(
            point_estimate(found["reasoning"][metric]),
            [point_estimate(draw[metric]) for draw in draws],
        )
        for metric in METRICS
    }
    return {"n": len(draws), "at_least_as_good": counts}


def _differences(found: Mapping[str, Mapping[str, PromptStatistic]]) -> dict[str, object]:
    """Paired differences: reasoning minus the others, and seen minus unseen authors."""
    out: dict[str, object] = {}
    if "reasoning" in found:
        for other in ("random", "semantic", "full"):
            if other in found:
                out[f"reasoning - {other}"] = {
                    metric: paired_difference(
                        found["reasoning"][metric], found[other][metric]
                    ).as_dict(DIGITS)
                    for metric in METRICS
                }
    for name, metrics in found.items():
        if "seen_authors" in metrics:
            gap = paired_difference(metrics["seen_authors"], metrics["unseen_authors"])
            out[f"{name}: seen - unseen"] = gap.as_dict(DIGITS)
    return out


# ------------------------------------------------------------------------------------- loading


class Unread:
    """A backbone that is asked for everything but to read."""

    def __init__(self, backbone: Backbone, refusal: str) -> None:
        """`refusal` is what the error says if it is asked all the same."""
        self._backbone, self._refusal = backbone, refusal

    def __getattr__(self, name: str) -> Any:
        """Of the backbone."""
        return getattr(self._backbone, name)

    def forward(self, *_: object) -> Never:
        """Refuse.

        Raises:
            StoreError: always.
        """
        raise StoreError(self._refusal)


def authors_of(data: Path) -> Path:
    """The file beside `data` that names the author of every answer."""
    return data.with_name(data.name + ".generators.json")


def check_files(data: Path, folder: Path) -> None:
    """Refuse what is not there, before a model is loaded.

    Raises:
        DataError: no data, or no file of their authors.
        StoreError: the folder holds no finished audit.
    """
    for path in (data, authors_of(data)):
        if not path.is_file():
            raise DataError(f"{path} is missing; make both files with prepare.py gsm8k-models")
    if not (folder / "audit.json").is_file():
        raise StoreError(f"{folder} holds no finished audit; run retrm audit {data} -o {folder}")


def load_features(data: Path, folder: Path, backbone: Backbone) -> Answers:
    """The answers of `data` with their last-token post_norm states from an audit's reading.

    Args:
        data: JSON lines of `prepare.py gsm8k-models`, its authors beside it.
        folder: of a finished `retrm audit` on the same data and model.
        backbone: the audited model.

    Raises:
        DataError: the data or the file of their authors are missing.
        StoreError: the folder holds no finished audit, or one of other answers or another model.
    """
    check_files(data, folder)
    table = load_table(data)
    generators = json.loads(authors_of(data).read_text("utf-8"))
    stored = json.loads((folder / "plan.json").read_text("utf-8"))
    refusal = (
        f"{folder} lacks the states of some of the {len(table)} answers in {data}; expected the audit "
        f"of just these. Run retrm audit {data} -o FOLDER in a folder of its own"
    )
    reading = read_answers(
        Unread(backbone, refusal),
        table,
        AuditPlan.from_dict(stored["plan"]),
        folder / "reading",
        overlong=stored["overlong"],
    )
    table = table.take(reading.rows.tolist())
    return Answers(
        reading.states(reading.layers[-1], "last").numpy(),
        table.labels,
        table.prompt_ids.tolist(),
        [generators[row] for row in reading.rows.tolist()],
    )


def make_bases(backbone: Backbone, size: str, n_draws: int) -> dict[str, list[np.ndarray | None]]:
    """The whole state, both ends of the LM head's spectrum, and random subspaces as wide."""
    m = SubspaceSpec.parse(f"reasoning:{size}").n_dims(backbone.width)
    spectrum = fit_spectrum(backbone.unembedding, "post_norm")
    return {
        "full": [None],
        "reasoning": [spectrum.subspace("reasoning", m).basis.numpy()],
        "semantic": [spectrum.subspace("semantic", m).basis.numpy()],
        "random": [spectrum.subspace("random", m, seed=s).basis.numpy() for s in range(n_draws)],
    }


def print_figures(result: Mapping[str, object]) -> None:
    """The table of figures, a line a set of features."""
    figures, named = result["figures"], result["author_accuracy"]
    print(f"{'':10}" + "".join(f"{metric:>18}" for metric in (*METRICS, "author named")))
    for name, metrics in figures.items():
        cells = [f"{metrics[m]['value']:.3f}" if m in metrics else "-" for m in METRICS]
        cells.append(f"{named[name]:.3f}" if name in named else "-")
        print(f"{name:10}" + "".join(f"{cell:>18}" for cell in cells))
    draws = result["draws"]
    if draws["n"]:
        counts = ", ".join(f"{metric} {n}" for metric, n in draws["at_least_as_good"].items())
        print(f"of {draws['n']} random subspaces do at least as well as reasoning: {counts}")
    print(f"the most frequent author has {named['most_frequent']:.3f} of the answers")


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="answers, as prepare.py gsm8k-models writes them")
    parser.add_argument(
        "--audit", type=Path, required=True, help="folder of retrm audit on the same answers"
    )
    parser.add_argument("--model", default="smollm2-135m", help="default: %(default)s")
    parser.add_argument("--size", default="5%", help="of the subspaces; default: %(default)s")
    parser.add_argument("--draws", type=int, default=19, help="random ones; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    if args.draws < 1:
        parser.error(f"got --draws {args.draws}; expected 1 or more")
    return args


def run(args: argparse.Namespace) -> None:
    """Load, compare, write."""
    SubspaceSpec.parse(f"reasoning:{args.size}")
    check_new_file(args.output)
    check_files(args.data, args.audit)
    backbone = load_backbone(args.model)
    answers = load_features(args.data, args.audit, backbone)
    settings = Settings(seed=args.seed)
    result = study(answers, make_bases(backbone, args.size, args.draws), settings)
    names = {name: answers.generators.count(name) for name in sorted(set(answers.generators))}
    facts = {
        "what": "heads on answers of many models: the answer or its author?",
        "model": args.model,
        "size": args.size,
        "n_answers": len(answers.labels),
        "n_prompts": len(set(answers.prompt_ids)),
        "generators": names,
        "settings": asdict(settings),
    }
    write_json(args.output, {**facts, **result})
    print_figures(result)
    print(f"written to {args.output}")


def main() -> int:
    """One study."""
    args = parse()
    try:
        run(args)
    except RetrmError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
