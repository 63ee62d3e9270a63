"""Several reward models as one scorer: their mean, the worst of them, or the mean less their variance.

With z_k = (s_k - mean_k) / std_k of the members' scores, mean and deviation over the answers that member
k was fitted on, and population variance over members:

    mean    1/M sum_k z_k
    min     min_k z_k                              worst case
    uwo     mean_k z_k - lam var_k z_k             uncertainty-weighted

Scores are standardised because the scale of a score is each head's own (its penalty decides) and the
zero of heads that were fitted on pairs is arbitrary: raw, the member with the largest scale would decide
the mean, and the one with the lowest zero the minimum. `raw` leaves scores as they are; it is right for
members whose scores have one meaning, such as logits of being right. One mean and deviation a member
serve all prompts, so a constant per prompt is no part of it.

Members on one backbone are read once. The variance of the mean of M members with variance v and
correlation rho is v (rho + (1 - rho) / M): members that agree in their mistakes gain nothing. Linear
heads of one convex fit differ in nothing but their data, so an ensemble draws prompts
(`retrm.fitting.ensemble`); and the mean of the weights of linear heads on the same features is the mean
of their scores, so averaging weights (WARM) would add nothing.

Sources: Coste et al., arXiv 2310.02743; WARM, arXiv 2401.12187.

    >>> import numpy as np
    >>> from retrm.scorers.ensemble import combined
    >>> bool(np.isclose(combined([[1.0], [3.0]], "uwo", lam=0.5)[0], 1.5))
    True
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np

from retrm.errors import ArtifactError, OutputError, RecipeError, did_you_mean
from retrm.features.reduce import Features
from retrm.files import write_json
from retrm.heads.artifact import CARD, MANIFEST, SELFTEST, WEIGHTS
from retrm.records import Answer
from retrm.scorers.base import Judgement, Scorer
from retrm.scorers.open import ENSEMBLE
from retrm.scorers.reward_model import RewardModel
from retrm.scorers.sequence_classifier import SequenceClassifier
from retrm.scorers.together import judge_all, reads_alike

Member = RewardModel | SequenceClassifier
Rule = Literal["mean", "min", "uwo"]
FORMAT_VERSION = 1
DEFAULT_LAM = 0.5
# Deviation of equal float64 scores, as a share of their size.
_ROUNDING = 1e-12
_SPEC = re.compile(r"(?:(raw-)?(mean|min|uwo)(?:=([^:]*))?:)?(.*)", re.DOTALL)


@dataclass(frozen=True)
class Scale:
    """Mean and standard deviation of a member's scores on the answers that it was fitted on."""

    mean: float
    std: float

    @classmethod
    def of(cls, scores: np.ndarray) -> Self:
        """Of scores; 1 stands for the deviation where all are equal."""
        values = np.asarray(scores, dtype=np.float64)
        std, largest = float(values.std()), float(np.abs(values).max())
        return cls(float(values.mean()), std if std > _ROUNDING * largest else 1.0)

    @classmethod
    def of_model(cls, model: Member) -> Self:
        """As the fit or the training stored it.

        Raises:
            ArtifactError: the reward model does not say it.
        """
        stored = (
            model.artifact.fitted.get("training_scores")
            if isinstance(model, RewardModel)
            else model.training_scores
        )
        if not isinstance(stored, Mapping):
            raise ArtifactError(
                f"the reward model {model.name} does not say how its scores were spread when it was "
                "fitted, by which an ensemble puts members on one scale; fit it again (retrm finetune stores "
                "it with --members), or take scores as they are: ensemble:raw-mean:DIR,DIR"
            )
        return cls(float(stored["mean"]), float(stored["std"]))


@dataclass(frozen=True)
class EnsembleRule:
    """How members become one score.

    Attributes:
        name: `mean`, `min` or `uwo`.
        lam: of `uwo`, how much a unit of variance costs.
        standardise: whether members are put on one scale first.
    """

    name: Rule = "mean"
    lam: float = DEFAULT_LAM
    standardise: bool = True

    def __post_init__(self) -> None:
        if self.name not in get_args(Rule):
            raise RecipeError(
                f"got ensemble rule {self.name!r}; expected one of {', '.join(get_args(Rule))}. "
                + did_you_mean(str(self.name), get_args(Rule))
            )
        is_number = isinstance(self.lam, int | float) and not isinstance(self.lam, bool)
        if not is_number or not (self.lam >= 0 and math.isfinite(self.lam)):
            raise RecipeError(f"got lam = {self.lam!r}; expected a finite number, 0 or more")


def combined(
    scores: Sequence[Sequence[float]] | np.ndarray, rule: Rule = "mean", *, lam: float = DEFAULT_LAM
) -> np.ndarray:
    """(n,) scores of an ensemble.

    Args:
        scores: (members, n); NaN where a member left an answer out, which is then left out here.
        rule: `mean`, `min` or `uwo`.
        lam: of `uwo`.

    Raises:
        RecipeError: unknown rule, or fewer than two members.
    """
    matrix = np.asarray(scores, dtype=np.float64)
    checked = EnsembleRule(rule, lam)
    if matrix.ndim != 2 or len(matrix) < 2:
        raise RecipeError(
            f"got member scores of shape {matrix.shape}; an ensemble expected (members, answers) with two "
            "members or more"
        )
    if checked.name == "min":
        return matrix.min(axis=0)
    mean = matrix.mean(axis=0)
    return mean if checked.name == "mean" else mean - lam * matrix.var(axis=0)


class EnsembleScorer:
    """Members that judge as one; implements `Scorer` and `LimitedScorer`."""

    def __init__(
        self,
        members: Mapping[str, Scorer],
        *,
        rule: EnsembleRule | None = None,
        scales: Mapping[str, Scale] | None = None,
        name: str = "ensemble",
    ) -> None:
        """Put members together.

        Args:
            members: by name, at least two.
            rule: how they become one score.
            scales: of each member by name; needed where the rule standardises.
            name: of the ensemble.

        Raises:
            RecipeError: fewer than two members, or a scale is missing.
        """
        self.members = dict(members)
        self.rule = rule or EnsembleRule()
        self.name = name
        if len(self.members) < 2:
            raise RecipeError(
                f"got {len(self.members)} member(s) of an ensemble; expected two or more different ones"
            )
        missing = [n for n in self.members if n not in (scales or {})]
        if self.rule.standardise and missing:
            raise RecipeError(
                f"got no scale for the members {', '.join(missing)}; expected mean and deviation of each "
                "one's scores, or a rule with standardise=False"
            )
        self.scales = dict(scales or {}) if self.rule.standardise else {}
        self._set_identity()

    def _set_identity(self) -> None:
        # Without that of every member, scores on disk could be of another ensemble.
        known = [getattr(member, "identity", None) for member in self.members.values()]
        if all(isinstance(one, str) for one in known):
            facts = [known, asdict(self.rule), [asdict(s) for s in self.scales.values()]]
            self.identity = f"ensemble {_hash(facts)}"

    @classmethod
    def of_models(
        cls,
        models: Sequence[Member],
        *,
        rule: EnsembleRule | None = None,
        name: str = "ensemble",
    ) -> "EnsembleScorer":
        """An ensemble of reward models, named by number where names repeat.

        Members that read the same features of one backbone, as those of one fit do, judge as one
        reward model does: a `StateEnsemble`.

        Raises:
            RecipeError: fewer than two.
            ArtifactError: the rule standardises and a model does not know its scale.
        """
        rule = rule or EnsembleRule()
        names = [model.name for model in models]
        if len(set(names)) < len(names):
            names = [f"{name}-{number}" for number, name in enumerate(names, 1)]
        members = dict(zip(names, models, strict=True))
        scales = {n: Scale.of_model(m) for n, m in members.items()} if rule.standardise else None
        kind = StateEnsemble if _read_alike(models) and cls is EnsembleScorer else cls
        return kind(members, rule=rule, scales=scales, name=name)

    def judge(self, answers: Sequence[Answer], *, overlong: str = "error") -> Judgement:
        """Scores and flags; an answer that one member leaves out is left out.

        Raises:
            OverlongError, RenderError, ScoreError: naming the record.
            RecipeError: a policy that a member does not have.
        """
        found = self._judged(answers, overlong)
        counts = next((j.n_tokens for j in found.values() if j.n_tokens is not None), None)
        is_cut = np.any([j.is_cut for j in found.values()], axis=0)
        return Judgement(self.combine([j.scores for j in found.values()]), counts, is_cut)

    def score(self, answers: Sequence[Answer]) -> np.ndarray:
        """(n,) float64; raises as `judge`."""
        return self.judge(answers).scores

    def member_scores(self, answers: Sequence[Answer]) -> np.ndarray:
        """(members, n) what is combined: standardised where the rule says so; raises as `judge`."""
        return self._aligned([j.scores for j in self._judged(answers, "error").values()])

    def combine(self, scores: Sequence[np.ndarray]) -> np.ndarray:
        """(n,) scores of the ensemble from the (n,) raw scores of each member, in their order."""
        return combined(self._aligned(scores), self.rule.name, lam=self.rule.lam)

    def _judged(self, answers: Sequence[Answer], overlong: str) -> dict[str, Judgement]:
        return judge_all(self.members, answers, overlong=overlong)  # type: ignore[arg-type]

    def _aligned(self, scores: Sequence[np.ndarray]) -> np.ndarray:
        if not self.rule.standardise:
            return np.stack(scores)
        scales = [self.scales[name] for name in self.members]
        return np.stack([(row - s.mean) / s.std for row, s in zip(scores, scales, strict=True)])

    def save(self, folder: str | Path) -> None:
        """A folder with one reward model a member; `ensemble.json` is written last.

        Raises:
            RecipeError: a member is no reward model.
            OutputError: it cannot be written.
        """
        folder = Path(folder)
        foreign = [n for n, m in self.members.items() if not isinstance(m, RewardModel)]
        if foreign:
            raise RecipeError(f"cannot save the members {', '.join(foreign)}: no reward models")
        names = [f"member-{number}" for number in range(1, len(self.members) + 1)]
        # Also what a larger one left; interrupted, there is none without the file that is written last.
        delete_ensemble(folder)
        for name, member in zip(names, self.members.values(), strict=True):
            assert isinstance(member, RewardModel)
            member.save(folder / name)
        write_ensemble(folder, names, self.rule)


def write_ensemble(folder: Path, members: Sequence[str], rule: EnsembleRule) -> None:
    """Say of a folder which members it holds and how they become one score.

    Args:
        folder: of the ensemble.
        members: paths below it; `hf:` before one that is a sequence classifier.
        rule: of the ensemble.

    Raises:
        OutputError: it cannot be written.
    """
    manifest = {"format_version": FORMAT_VERSION, "members": list(members), **asdict(rule)}
    write_json(folder / ENSEMBLE, manifest)


class StateEnsemble(EnsembleScorer):
    """Members that read the same features of one backbone; implements `StateScorer`, too.

    So it shares a reading with other heads on that backbone, and is served text and token ids.
    """

    def __init__(
        self,
        members: Mapping[str, Scorer],
        *,
        rule: EnsembleRule | None = None,
        scales: Mapping[str, Scale] | None = None,
        name: str = "ensemble",
    ) -> None:
        """As `EnsembleScorer`; the members are reward models, of which `of_models` made sure."""
        super().__init__(members, rule=rule, scales=scales, name=name)
        self._models = [one for one in members.values() if isinstance(one, RewardModel)]
        assert len(self._models) == len(members), "reward models alone"
        self.backbone = self._models[0].backbone
        self.reducer = self._models[0].reducer

    def of_features(self, features: Features) -> np.ndarray:
        """(n,) float64 scores of features that `reducer` made."""
        return self.combine([model.of_features(features) for model in self._models])


def _read_alike(models: Sequence[Member]) -> bool:
    heads = [one for one in models if isinstance(one, RewardModel)]
    return (
        bool(heads)
        and len(heads) == len(models)
        and all(
            one.backbone is heads[0].backbone and reads_alike(one.reducer, heads[0].reducer)
            for one in heads
        )
    )


def delete_ensemble(folder: str | Path) -> None:
    """Delete what `EnsembleScorer.save` wrote into `folder`; other files are kept.

    The manifest goes first: what a kill leaves behind is no ensemble.

    Raises:
        OutputError: it cannot be deleted.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return
    try:
        (folder / ENSEMBLE).unlink(missing_ok=True)
        for member in sorted(folder.glob("member-[0-9]*")):
            for name in (MANIFEST, WEIGHTS, SELFTEST, CARD):
                (member / name).unlink(missing_ok=True)
            _remove_if_empty(member)
        _remove_if_empty(folder)
    except OSError as error:
        raise OutputError(
            f"cannot delete the ensemble of an earlier fit in {folder}: {error.strerror}; expected a "
            "folder that can be written. Delete it yourself, then run again"
        ) from error


def _remove_if_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


@dataclass(frozen=True)
class EnsembleSpec:
    """What was typed or stored of an ensemble: folders of members and the rule."""

    folders: tuple[str, ...]
    rule: EnsembleRule

    @classmethod
    def parse(cls, text: str) -> Self:
        """``DIR,DIR``, ``min:DIR,DIR``, ``uwo=0.5:DIR,DIR`` or ``raw-mean:DIR,DIR``.

        Raises:
            RecipeError: fewer than two folders, one twice, or an impossible lam.
        """
        found = _SPEC.fullmatch(text)
        assert found is not None, "the last part takes anything"
        raw, name, lam, rest = found.groups()
        if lam is not None and (name != "uwo" or _number(lam) is None):
            raise RecipeError(
                f"got ensemble:{text}; expected a number behind uwo alone, such as uwo=0.5:DIR,DIR"
            )
        folders = tuple(part.strip() for part in rest.split(",") if part.strip())
        if len(folders) < 2 or len(set(map(Path, folders))) < len(folders):
            raise RecipeError(
                f"got ensemble:{text}; expected two different folders or more, ensemble:DIR,DIR or "
                "ensemble:RULE:DIR,DIR with RULE mean, min, uwo=0.5, raw-mean, raw-min or raw-uwo=0.5"
            )
        strength = DEFAULT_LAM if lam is None else _number(lam)
        assert strength is not None
        return cls(folders, EnsembleRule(name or "mean", strength, standardise=raw is None))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Of a folder that `EnsembleScorer.save` wrote.

        Raises:
            ArtifactError: damaged, or of another version.
        """
        path = Path(folder) / ENSEMBLE
        try:
            stored: dict[str, Any] = json.loads(path.read_text("utf-8"))
            version, names = stored.pop("format_version"), stored.pop("members")
            rule = EnsembleRule(**stored)
            folders = tuple(_below(Path(folder), name) for name in names)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(f"{path} is damaged ({error}); restore it or fit again") from error
        if version != FORMAT_VERSION:
            raise ArtifactError(
                f"{path} has format version {version!r}; this retrm reads version {FORMAT_VERSION}. "
                "Install the retrm that wrote it, or fit again"
            )
        return cls(folders, rule)


def _below(folder: Path, name: str) -> str:
    kind, colon, rest = name.rpartition(":")
    return f"{kind}{colon}{folder / rest}"


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _hash(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
