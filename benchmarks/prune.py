"""What `--prune` costs in accuracy and saves in tokens, on the demo's questions.

Nothing is sampled again: a candidate's tokens do not depend on the other candidates, so the committed
answers are replayed. Running scores come from `RunningScores`, the object that runs along with
sampling, fed with the states of one reading; the rule itself is asked at the tokens at which sampling
would ask it. `--check N` runs N questions for real, with the seed of the committed answers, and counts
those in which the replay and the real run stop the same candidates at the same tokens. Heads are
fitted on other questions.

Beside each rule stands what its tokens buy without any rule: best-of-k of fewer candidates, k chosen
so that the tokens are the same (between two whole k, their mean by weight).

    python benchmarks/prune.py [--prompts N] [--check N] [--store FOLDER]
"""

import argparse
import json
import operator
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from demo_answers import N_FOLDS, PRESETS, model_parser, read_demo, shown
from harness import Report, one_thread_note, say

from retrm.backbone.base import Backbone
from retrm.backbone.generate import PruneRule, sample
from retrm.backbone.load import load_backbone
from retrm.data.split import prompt_folds
from retrm.features.read import Reading
from retrm.features.reduce import Features, Reducer
from retrm.fitting.fit import log_probability_of, out_of_fold
from retrm.fitting.targets import Targets
from retrm.heads.base import Head
from retrm.methods import METHODS
from retrm.metrics import (
    PromptStatistic,
    RatioStatistic,
    Resamples,
    best_of_k_statistic,
    mean_statistic,
)
from retrm.records import AnswerTable, CandidateSet
from retrm.scorers.running import RunningScores
from retrm.selection import apply
from retrm.selection.prune import LowerShare

RULES = tuple(LowerShare(every=n, share=share) for n in (8, 16, 32) for share in (0.25, 0.5))
# The reading that holds the states of every token of each preset.
STATES = {"last_token": "tokens", "retrm": "tokens", "elhsr": "elhsr"}
ROWS = 128  # answers that are followed together


@dataclass(frozen=True)
class Replayed:
    """What became of the candidates of all prompts.

    Attributes:
        is_kept: (answers,) False = stopped.
        n_tokens: (answers,) tokens that were generated.
    """

    is_kept: np.ndarray
    n_tokens: np.ndarray


def main() -> None:
    args = arguments()
    backbone = load_backbone(args.model)
    table, reading = read_demo(backbone, args.prompts, data=args.data, store=args.store)
    ids = table.prompt_ids.tolist()
    folds = prompt_folds(ids, N_FOLDS, seed=0)
    judge = Judge(table, log_probability_of(table, reading))
    report = Report("prune", settings(args, table, reading, judge.n_tokens))
    report.rows += judge.baselines()
    for name in PRESETS:
        followed = Followed.of(name, backbone, reading, Targets.of(table), folds)
        report.rows += judge.rows(name, followed.running)
        if name == PRESETS[0] and args.check:
            report.setting |= checked(backbone, table, followed, args.check)
    report.notes += [
        "Tokens, not seconds: a batch that loses rows does not become faster in proportion.",
        "`all` keeps the best of all candidates; `minus fewer` is against best-of-k without a rule, "
        "at the same tokens; intervals resample questions, the same ones for both sides.",
        "every=64 stops nobody here: answers are broken off after 64 tokens.",
        one_thread_note(),
    ]
    report.finish()


def arguments() -> argparse.Namespace:
    options = model_parser(__doc__)
    options.add_argument("--prompts", type=int, default=416)
    options.add_argument("--check", type=int, default=4, help="questions that are run for real")
    options.add_argument("--store", type=Path, help="keep the features here for the next run")
    return options.parse_args()


def settings(
    args: argparse.Namespace, table: AnswerTable, reading: Reading, n_tokens: np.ndarray
) -> dict[str, object]:
    """What was measured on."""
    return {
        "model": Path(args.model).name,
        "questions": len(set(table.prompt_ids)),
        "answers": len(table),
        "tokens_generated": int(n_tokens.sum()),
        "folds": N_FOLDS,
        "tokens_read_now": reading.n_tokens,
        "seconds_of_reading": round(reading.elapsed_s, 1),
    }


# ------------------------------------------------------------------------------- the replay


@dataclass(frozen=True)
class Followed:
    """A preset's heads, and the running scores of all answers.

    Attributes:
        reducer: of the preset.
        heads: of each fold, fitted on the other folds.
        folds: (answers,) the fold of each.
        running: per answer its score after each token, by the head of its fold.
    """

    reducer: Reducer
    heads: tuple[Head, ...]
    folds: np.ndarray
    running: tuple[np.ndarray, ...]

    @classmethod
    def of(
        cls, name: str, backbone: Backbone, reading: Reading, targets: Targets, folds: np.ndarray
    ) -> Self:
        """Fit, and follow the answers."""
        method, fits = METHODS[name], []
        out_of_fold(method, reading.features[name], targets, folds, on_fit=fits.append)
        heads = tuple(fitted.head for fitted in fits)
        reducer, states = Reducer(method.recipe, backbone), reading.features[STATES[name]]
        started, running = time.monotonic(), [np.empty(0)] * len(folds)
        for fold, head in enumerate(heads):
            rows = np.flatnonzero(folds == fold)
            for part in np.array_split(rows, -(-len(rows) // ROWS)):
                found = follow(reducer, head, states.take(part))
                for row, scores in zip(part, found, strict=True):
                    running[row] = scores
        say(f"{name}: followed in {time.monotonic() - started:.0f} s")
        return cls(reducer, heads, folds, tuple(running))


def follow(reducer: Reducer, head: Head, states: Features) -> list[np.ndarray]:
    """Running scores of answers whose states are known: (tokens,) float64 each.

    Args:
        reducer: of the head's recipe, which must read states.
        head: fitted.
        states: of all tokens, the wanted ones side by side at full width.
    """
    follower = RunningScores(reducer, head, torch.device("cpu"))
    wanted, starts = list(follower.wanted), states.offsets[:-1]
    lengths = states.offsets[1:] - starts
    nobody = torch.zeros(len(starts), 1)  # logits, which are not looked at

    def show(token: int) -> None:
        at = starts + torch.minimum(torch.full_like(lengths, token), lengths - 1)
        parts = states.values[at].float().chunk(len(wanted), dim=1)
        for (layer, point), part in zip(wanted, parts, strict=True):
            follower.visit(layer, point, part)

    show(0)
    follower.begin(nobody)
    steps = []
    for token in range(int(lengths.max())):
        show(token)
        follower.feed([0] * len(starts), lengths > token, nobody)
        steps.append(follower.scores().double().numpy())
    whole = np.stack(steps, axis=1)
    return [row[:n] for row, n in zip(whole, lengths.tolist(), strict=True)]


def replay(rule: PruneRule, running: Sequence[np.ndarray]) -> list[int]:
    """How many tokens each candidate of one prompt has when it ends or is stopped.

    Args:
        rule: asked whenever those under way have grown by `rule.every` tokens.
        running: per candidate, its score after each token of the whole answer; the end token counts.
    """
    n_tokens = [len(scores) for scores in running]
    stopped: set[int] = set()
    for token in range(rule.every, max(n_tokens), rule.every):
        left = [i for i in range(len(running)) if i not in stopped]
        under_way = [i for i in left if len(running[i]) > token]
        ended = [running[i][-1] for i in left if len(running[i]) <= token]
        if not under_way:
            continue
        for place in rule.stop([running[i][token - 1] for i in under_way], ended):
            stopped.add(under_way[place])
            n_tokens[under_way[place]] = token
    return n_tokens


def replay_all(
    rule: PruneRule, running: Sequence[np.ndarray], sets: Sequence[CandidateSet]
) -> Replayed:
    """The same for every prompt of a table."""
    lengths = np.array([len(scores) for scores in running])
    n_tokens = lengths.copy()
    for candidates in sets:
        rows = list(candidates.rows)
        n_tokens[rows] = replay(rule, [running[row] for row in rows])
    # A candidate that is stopped was under way: it had a token to come.
    return Replayed(n_tokens == lengths, n_tokens)


def checked(
    backbone: Backbone, table: AnswerTable, followed: Followed, n_questions: int
) -> dict[str, object]:
    """Some questions with the real rule in the real sampler, beside their replay."""
    options = json.loads((DATA.parent / "sampling.json").read_text("utf-8"))
    rule, counts = LowerShare(every=16, share=0.5), Counter()
    sets = table.candidate_sets()
    for candidates in sets[:: max(1, len(sets) // n_questions)][:n_questions]:
        rows = list(candidates.rows)
        answers, running = table.take(rows).answers, [followed.running[row] for row in rows]
        head = followed.heads[followed.folds[rows[0]]]
        drawn = sample(
            backbone,
            [answers[0].prompt],
            n=len(rows),
            follower=RunningScores(followed.reducer, head, backbone.device),
            prune=rule,
            **options,
        )
        n_tokens, expected = [], replay(rule, running)
        for one, answer in zip(drawn, answers, strict=True):
            n_tokens.append(len(one.token_ids))
            # Another processor may draw other tokens: then there is nothing to compare.
            counts["other_tokens"] += one.token_ids != answer.response_ids[: n_tokens[-1]]
        counts["as_replayed"] += n_tokens == expected
        counts["stopped"] += sum(map(operator.lt, expected, map(len, running)))
        counts["questions"] += 1
    say(f"run for real: {dict(counts)}")
    return {"run_for_real": dict(counts)}


# ------------------------------------------------------------------------------- the figures


class Judge:
    """Accuracy and tokens with intervals over questions."""

    def __init__(self, table: AnswerTable, log_probability: np.ndarray) -> None:
        self.ids, self.sets = table.prompt_ids.tolist(), table.candidate_sets()
        self.labels = table.labels
        self.keys = [answer.key for answer in table.answers]
        self.log_probability = log_probability
        self.n_tokens = np.array([len(answer.response_ids) for answer in table.answers])
        self.n_candidates = min(len(candidates.rows) for candidates in self.sets)
        self.resamples = Resamples(np.unique(np.array(self.ids)))

    def baselines(self) -> list[dict[str, object]]:
        """Rules that need no head, on all candidates."""
        votes = apply("majority", self.ids, keys=self.keys)
        found = {
            "random choice": mean_statistic(self.labels, self.ids, weighting="prompt"),
            "majority": mean_statistic(votes.chosen_labels(self.labels), votes.prompt_ids),
            "log-probability": self.best(self.log_probability),
            "oracle": self.best(self.labels),
        }
        return [
            {"what": name, "rule": "all", **shown("accuracy", self.resamples.interval(s))}
            for name, s in found.items()
        ]

    def rows(self, name: str, running: Sequence[np.ndarray]) -> list[dict[str, object]]:
        """One line without a rule and one for each rule."""
        scores = np.array([each[-1] for each in running])
        whole = self.best(scores)
        interval = self.resamples.interval
        lines = [{"what": name, "rule": "all", **shown("accuracy", interval(whole))}]
        for rule in RULES:
            done = replay_all(rule, running, self.sets)
            kept = self.best(scores, done.is_kept)
            saved = self.saved(done.n_tokens)
            k = self.n_candidates * (1 - interval(saved).value)
            fewer = self.best_of(scores, k)
            line = {"what": name, "rule": f"every={rule.every}, share={rule.share:g}"}
            line |= shown("accuracy", interval(kept))
            line |= shown("minus_all", self.resamples.difference(kept, whole))
            line |= shown("tokens_saved", interval(saved))
            line |= {"same_tokens_k": round(k, 2)}
            line |= shown("minus_fewer", self.resamples.difference(kept, fewer))
            lines.append(line)
        return lines

    def best(self, scores: np.ndarray, is_kept: np.ndarray | None = None) -> PromptStatistic:
        """Accuracy of the best-scored of the kept candidates."""
        rows = np.flatnonzero(np.ones(len(scores), bool) if is_kept is None else is_kept)
        return best_of_k_statistic(scores[rows], self.labels[rows], [self.ids[i] for i in rows])

    def best_of(self, scores: np.ndarray, k: float) -> RatioStatistic:
        """Exact expected accuracy of the best of k random candidates, k between whole numbers too."""
        low = max(1, int(k))
        weight = min(max(k - low, 0.0), 1.0)
        below, above = (
            best_of_k_statistic(scores, self.labels, self.ids, k=min(each, self.n_candidates))
            for each in (low, low + 1)
        )
        mixed = (1 - weight) * below.numerator + weight * above.numerator
        return RatioStatistic(below.prompts, mixed, below.denominator, below.n)

    def saved(self, n_tokens: np.ndarray) -> RatioStatistic:
        """Share of the tokens of all answers that would not have been generated."""
        fewer = mean_statistic(self.n_tokens - n_tokens, self.ids)
        every = mean_statistic(self.n_tokens, self.ids)
        return RatioStatistic(fewer.prompts, fewer.numerator, every.numerator, every.n)


if __name__ == "__main__":
    main()
