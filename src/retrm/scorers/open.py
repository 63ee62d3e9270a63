"""From what a person types to a scorer."""

from pathlib import Path

from retrm.errors import ArtifactError, RecipeError
from retrm.scorers.base import Scorer

BASELINES = ("shortest", "longest", "random", "log_probability")


def open_scorer(spec: str, *, model: str | None = None, device: str = "cpu") -> Scorer:
    """A scorer by name.

    Args:
        spec: a folder made by `retrm fit`; `hf:PATH` for a Hugging Face sequence classifier with one
            output; or `shortest`, `longest`, `random`, `log_probability`.
        model: the backbone of `log_probability`; or where the backbone of a folder lies now.
        device: for the backbone.

    Raises:
        RecipeError, ArtifactError, BackboneError: it cannot be opened.
    """
    if spec in ("shortest", "longest", "random"):
        from retrm.scorers.baseline import LengthScorer, RandomScorer

        return RandomScorer() if spec == "random" else LengthScorer(prefers=spec)
    if spec == "log_probability":
        from retrm.backbone.load import load_backbone
        from retrm.scorers.baseline import LogProbabilityScorer

        if model is None:
            raise RecipeError("log_probability needs a language model; add --model NAME")
        return LogProbabilityScorer(load_backbone(model, device=device))
    if spec.startswith("hf:"):
        from retrm.scorers.sequence_classifier import SequenceClassifier

        return SequenceClassifier.load(spec.removeprefix("hf:"), device=device)
    if not Path(spec).exists():
        raise ArtifactError(
            f"there is no scorer {spec!r}; expected a folder made by retrm fit, hf:PATH, or one of "
            f"{', '.join(BASELINES)}"
        )
    from retrm.scorers.reward_model import RewardModel

    return RewardModel.load(spec, model=model, device=device)
