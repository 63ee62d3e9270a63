"""A head on a model that is being trained: its own states, no second model, and how far the scores drift.

The head is frozen and was fitted on the states of the model as it was at first. Every training step moves
the states under it, so that the SAME answer gets another score. Fixed probe answers, scored again and again,
show it: with s_0 their scores at the first step and s_t those now,

    mean_shift      mean(s_t - s_0)               a constant moves no ranking
    mean_abs_shift  mean |s_t - s_0|
    same_order      share of pairs of probes that s_0 tells apart and s_t puts in the same order
    auroc           right against wrong probes within prompts, where labels are known

What is scored is the model's own reading of an answer; whether a higher score still means a better answer
is for a scorer outside of the training to say.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from retrm.backbone.fingerprint import fingerprint_model
from retrm.backbone.render import ChatRenderer
from retrm.backbone.states import TransformersBackbone
from retrm.errors import BackboneError, DataError, RecipeError
from retrm.heads.artifact import load_artifact
from retrm.metrics.points import within_prompt_auroc
from retrm.records import Answer
from retrm.scorers.reward_model import RewardModel


@dataclass(frozen=True)
class DriftPoint:
    """The probes at one training step.

    Attributes:
        step: of the training.
        scores: of the probes, raw, in their order.
        mean_shift: mean difference from their first scores.
        mean_abs_shift: mean size of it.
        same_order: share of the pairs that the first scores tell apart and that are in the same order.
        auroc: of right against wrong probes within prompts; None without labels.
    """

    step: int
    scores: tuple[float, ...]
    mean_shift: float
    mean_abs_shift: float
    same_order: float
    auroc: float | None


@dataclass(frozen=True)
class DriftReport:
    """What became of the probes' scores; the first point is the policy before training."""

    points: tuple[DriftPoint, ...]

    @property
    def in_words(self) -> str:
        """One sentence on the last point."""
        first, last = self.points[0], self.points[-1]
        spread = float(np.std(first.scores))
        told = f"; right against wrong {first.auroc:.3f} -> {last.auroc:.3f}" if last.auroc else ""
        return (
            f"after {last.step} steps {len(last.scores)} fixed answers are scored {last.mean_shift:+.3g} "
            f"on average ({last.mean_abs_shift:.3g} in size, beside a spread of {spread:.3g} among them "
            f"at first), and {last.same_order:.0%} of their pairs keep their order{told}"
        )


class PolicyStates:
    """Scores answers by a policy's own states, whatever state its training is in.

    Args:
        folder: of a reward model that was fitted on this policy before its training.
        policy: a causal LM of transformers in this process, whole and not sharded.
        tokenizer: of it.
        probes: answers to measure the drift by; none, or two or more.
        labels: of the probes, 1 right and 0 wrong.

    Raises:
        ArtifactError: the folder is no reward model.
        BackboneError: the policy cannot be read, or has another dtype than the head was fitted on.
        FingerprintError, SelfTestError: it is not the model that the head was fitted on.
        RecipeError: a single probe.
        DataError, LabelError: labels that do not fit the probes.
    """

    def __init__(
        self,
        folder: str | Path,
        policy: nn.Module,
        tokenizer: Any,
        *,
        probes: Sequence[Answer] = (),
        labels: Sequence[float] | None = None,
    ) -> None:
        if len(probes) == 1:
            raise RecipeError(
                "got one probe; expected none, or two and more, whose order can be kept"
            )
        if labels is not None and len(labels) != len(probes):
            raise DataError(f"got {len(labels)} labels for {len(probes)} probes; expected one each")
        artifact = load_artifact(Path(folder))
        _check_dtype(policy, artifact.backbone.dtype)
        renderer = ChatRenderer(tokenizer, counts_end=artifact.recipe.counts_end)
        fingerprint = fingerprint_model(policy, tokenizer, renderer.template_text)
        self._policy = policy
        self._renderer = renderer
        self._probes = list(probes)
        self._labels = None if labels is None else list(labels)
        self._points: list[DriftPoint] = []
        with _evaluating(policy):
            backbone = TransformersBackbone(policy, renderer, fingerprint, "the policy")
            self._model = RewardModel(artifact, backbone, name=Path(folder).name)
            self._model.replay_selftest()
        if self._probes:
            self.measure(0)

    def score(self, answers: Sequence[Answer]) -> np.ndarray:
        """(n,) raw scores by the policy as it is now; the modes of its parts are as before afterwards.

        Raises:
            OverlongError, RenderError, ScoreError: naming the record.
        """
        with _evaluating(self._policy):
            return self._model.score(answers)

    def sampled(self, answer: Answer, ids: Sequence[int]) -> Answer:
        """`answer` as the tokens that the policy drew, which may be cut before their end."""
        has_end = any(i in self._renderer.end_ids for i in ids)
        return replace(answer, response_ids=tuple(int(i) for i in ids), finished=has_end)

    def is_due(self, step: int, every: int) -> bool:
        """Whether the drift should be measured at this step."""
        return bool(self._probes) and step - self._points[-1].step >= every

    def measure(self, step: int) -> DriftPoint:
        """Score the probes and keep what is found."""
        scores = self.score(self._probes)
        first = np.array(self._points[0].scores) if self._points else scores
        auroc = None
        if self._labels is not None:
            prompts = [probe.prompt_id for probe in self._probes]
            auroc = within_prompt_auroc(scores, self._labels, prompts).mean
        point = DriftPoint(
            step=step,
            scores=tuple(scores.tolist()),
            mean_shift=float(np.mean(scores - first)),
            mean_abs_shift=float(np.mean(np.abs(scores - first))),
            same_order=same_order(first, scores),
            auroc=auroc,
        )
        self._points.append(point)
        return point

    def report(self) -> DriftReport:
        """All points so far.

        Raises:
            RecipeError: there are no probes.
        """
        if not self._points:
            raise RecipeError("the drift is not known: expected probes=, two or more fixed answers")
        return DriftReport(tuple(self._points))


def same_order(first: np.ndarray, now: np.ndarray) -> float:
    """Share of the pairs that `first` tells apart and `now` puts in the same order; 1 if there are none.

    Args:
        first: (n,) scores.
        now: (n,) scores of the same rows.
    """
    before = np.sign(first[:, None] - first[None, :])
    told_apart = before != 0
    if not told_apart.any():
        return 1.0
    after = np.sign(now[:, None] - now[None, :])
    return float((before == after)[told_apart].mean())


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout inside of the block; each part gets its own mode back, frozen ones included."""
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for part, is_training in modes:
            part.training = is_training


def _check_dtype(policy: nn.Module, expected: str) -> None:
    got = str(getattr(policy, "dtype", expected)).removeprefix("torch.")
    if got != expected:
        raise BackboneError(
            f"the policy computes in {got}, and the head was fitted on states in {expected}; load the "
            f"policy with dtype={expected}, or fit the head again with --dtype {got}"
        )
