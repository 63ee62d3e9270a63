"""From what a person types to a scorer."""

from pathlib import Path

from retrm.engines.base import Engine
from retrm.errors import ArtifactError, RecipeError
from retrm.scorers.base import Scorer

BASELINES = ("shortest", "longest", "random", "log_probability", "stored")
_WITHOUT_BACKBONE = frozenset(BASELINES) - {"log_probability"}


def open_scorer(
    spec: str, *, model: str | None = None, device: str = "cpu", engine: Engine | None = None
) -> Scorer:
    """A scorer by name.

    Args:
        spec: a folder made by `retrm fit`; `hf:PATH` for a Hugging Face sequence classifier with one
            output; `shortest`, `longest`, `random`, `log_probability`; or `stored`, the scores that
            the file states.
        model: the backbone of `log_probability`; or where the backbone of a folder lies now.
        device: for the backbone.
        engine: whose workers load the backbone; None = this process.

    Raises:
        RecipeError, ArtifactError, BackboneError: it cannot be opened.
    """
    if engine is not None and (spec.startswith("hf:") or spec in _WITHOUT_BACKBONE):
        raise RecipeError(
            f"{spec} has no backbone to be read on workers; use engine local, or a folder made by "
            "retrm fit or log_probability"
        )
    if spec in ("shortest", "longest", "random"):
        from retrm.scorers.baseline import LengthScorer, RandomScorer

        return RandomScorer() if spec == "random" else LengthScorer(prefers=spec)
    if spec == "stored":
        from retrm.scorers.baseline import StoredScorer

        return StoredScorer()
    if spec == "log_probability":
        from retrm.backbone.remote import open_backbone
        from retrm.scorers.baseline import LogProbabilityScorer

        if model is None:
            raise RecipeError("log_probability needs a language model; add --model NAME")
        return LogProbabilityScorer(open_backbone(model, engine=engine, device=device))
    if spec.startswith("hf:"):
        from retrm.scorers.sequence_classifier import SequenceClassifier

        return SequenceClassifier.load(spec.removeprefix("hf:"), device=device)
    if not Path(spec).exists():
        raise ArtifactError(
            f"there is no scorer {spec!r}; expected a folder made by retrm fit, hf:PATH, or one of "
            f"{', '.join(BASELINES)}"
        )
    from retrm.scorers.reward_model import RewardModel

    return RewardModel.load(spec, model=model, device=device, engine=engine)
