"""From what a person types to a scorer."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from retrm.engines.base import Engine
from retrm.errors import ArtifactError, RecipeError
from retrm.scorers.base import Scorer

if TYPE_CHECKING:
    from retrm.backbone.base import Backbone
    from retrm.scorers.baseline import LogProbabilityScorer
    from retrm.scorers.reward_model import RewardModel

BASELINES = ("shortest", "longest", "random", "log_probability", "stored")
REMOTE = ("vllm", "vllm-pooling", "sglang", "polar-vllm", "polar-sglang", "openrlhf", "retrm")
_ELSEWHERE = (*(f"{kind}:" for kind in REMOTE), "hf:", "polar:", "call:", "scores:")
_WRAPPERS = ("ensemble:", "calibrated:", "objectives:", "steps:")
ENSEMBLE = "ensemble.json"  # in the folder of an ensemble
_WITHOUT_BACKBONE = frozenset(BASELINES) - {"log_probability"}


def open_scorers(
    specs: Sequence[str],
    *,
    model: str | None = None,
    device: str = "cpu",
    engine: Engine | None = None,
) -> dict[str, Scorer]:
    """Several scorers by what was typed; folders that were fitted on one backbone share it.

    Args:
        specs: as for `open_scorer`.
        model: where the backbone of the folders lies now.
        device: for backbones.
        engine: whose workers load the backbones.

    Raises:
        RecipeError: a scorer is named twice; otherwise as `open_scorer`.

    Returns:
        Each scorer by what was typed, without the user and password of an address.
    """
    from retrm.heads.artifact import MANIFEST, load_artifact

    shown = [shown_spec(spec) for spec in specs]
    twice = sorted({name for name in shown if shown.count(name) > 1})
    if twice:
        raise RecipeError(f"the scorer {twice[0]!r} is named twice; expected each once")
    known: dict[tuple[str, str, bool, str], Backbone] = {}
    opened: dict[str, Scorer] = {}
    for spec in specs:
        if spec == "log_probability":
            key = (model or "", "float32", True, "chat")  # as `open_backbone` opens it
            by_probability = _log_probability(model, device, engine, known.get(key))
            known.setdefault(key, by_probability.backbone)
            opened[spec] = by_probability
            continue
        if spec.startswith(_WRAPPERS) or not (Path(spec) / MANIFEST).is_file():
            opened[shown_spec(spec)] = open_scorer(spec, model=model, device=device, engine=engine)
            continue
        artifact = load_artifact(Path(spec))
        name = model or artifact.backbone.name
        recipe = artifact.recipe
        key = (name, artifact.backbone.dtype, recipe.counts_end, recipe.template)
        made = _reward_model(spec, model, device, engine, known.get(key))
        known.setdefault(key, made.backbone)
        opened[spec] = made
    return opened


def shown_spec(spec: str) -> str:
    """What was typed, as it may stand in reports and file names: no user and password."""
    if spec.partition(":")[0] not in (*REMOTE, "judge", "cascade"):
        return spec
    from retrm.patience import without_password

    return without_password(spec)


def _reward_model(
    folder: str, model: str | None, device: str, engine: Engine | None, backbone: "Backbone | None"
) -> "RewardModel":
    from retrm.scorers.reward_model import RewardModel

    return RewardModel.load(folder, model=model, device=device, engine=engine, backbone=backbone)


def _log_probability(
    model: str | None, device: str, engine: Engine | None, backbone: "Backbone | None"
) -> "LogProbabilityScorer":
    from retrm.backbone.remote import open_backbone
    from retrm.scorers.baseline import LogProbabilityScorer

    if model is None:
        raise RecipeError("log_probability needs a language model; add --model NAME")
    return LogProbabilityScorer(backbone or open_backbone(model, engine=engine, device=device))


def open_scorer(
    spec: str, *, model: str | None = None, device: str = "cpu", engine: Engine | None = None
) -> Scorer:
    """A scorer by name.

    Args:
        spec: a folder made by `retrm fit`; `hf:PATH` for a Hugging Face sequence classifier with one
            output; `polar:PATH` for a policy discriminator, which compares with references; `vllm:URL`, `vllm-pooling:URL`, `sglang:URL`,
            `polar-vllm:URL`, `polar-sglang:URL`, `openrlhf:URL`, `retrm:URL` for a
            server; `call:MODULE:NAME` for a Python function; `scores:FILE` for scores of a file, found
            by prompt and answer; `ensemble:DIR,DIR` for several reward models as one, or the folder of an
            ensemble; `calibrated:FILE` for a scorer less its length curve; `objectives:NAME=SCORER,...`
            for scorers side by side; `steps:RULE:SCORER` for solutions judged step by step;
            `judge:MODEL?template=NAME&...` for a generative judge, here or behind an endpoint;
            `cascade:MARGIN,SCORER,judge:...` for a judge where a scorer is unsure; `shortest`, `longest`,
            `random`, `log_probability`; or `stored`, the scores that the rows themselves state.
        model: the backbone of `log_probability`; where the backbone of a folder lies now; or the
            model whose tokenizer a server wants.
        device: for the backbone.
        engine: whose workers load the backbone; None = this process.

    Raises:
        RecipeError, ArtifactError, BackboneError: it cannot be opened.
    """
    if engine is not None and (spec.startswith(_ELSEWHERE) or spec in _WITHOUT_BACKBONE):
        raise RecipeError(
            f"{spec} has no backbone to be read on workers; use engine local, or a folder made by "
            "retrm fit or log_probability"
        )
    if spec in ("shortest", "longest", "random"):
        from retrm.scorers.baseline import LengthScorer, RandomScorer

        return RandomScorer() if spec == "random" else LengthScorer(prefers=spec)
    if spec.startswith(_WRAPPERS) or _is_ensemble(spec):
        return _wrapper(spec, model, device, engine)
    if spec.startswith("judge:"):
        from retrm.scorers.judge import open_judge

        return open_judge(spec, device=device, engine=engine)
    if spec.startswith("cascade:"):
        from retrm.scorers.cascade import open_cascade

        return open_cascade(spec, model=model, device=device, engine=engine)
    if spec == "stored":
        from retrm.scorers.baseline import StoredScorer

        return StoredScorer()
    if (kind := spec.partition(":")[0]) in REMOTE:
        return _remote(kind, spec.partition(":")[2], model)
    if spec.startswith("call:"):
        from retrm.scorers.foreign import open_callable

        return open_callable(spec.removeprefix("call:"))
    if spec.startswith("scores:"):
        from retrm.scorers.foreign import FileScorer

        return FileScorer(spec.removeprefix("scores:"))
    if spec == "log_probability":
        return _log_probability(model, device, engine, None)
    if spec.startswith("hf:"):
        from retrm.scorers.polar import MARK
        from retrm.scorers.sequence_classifier import SequenceClassifier

        if (Path(spec.removeprefix("hf:")) / MARK).is_file():
            raise RecipeError(
                f"{spec} is a policy discriminator, which compares with references and reads no chats; use "
                f"polar:{spec.removeprefix('hf:')}"
            )
        return SequenceClassifier.load(spec.removeprefix("hf:"), device=device)
    if spec.startswith("polar:"):
        from retrm.scorers.polar import PolarScorer

        return PolarScorer.load(spec.removeprefix("polar:"), device=device)
    if not Path(spec).exists():
        raise ArtifactError(
            f"there is no scorer {spec!r}; expected a folder made by retrm fit, hf:PATH, polar:PATH, "
            f"{', '.join(f'{kind}:URL' for kind in REMOTE)}, call:MODULE:NAME, scores:FILE, "
            "ensemble:DIR,DIR, calibrated:FILE, objectives:NAME=SCORER,NAME=SCORER, steps:RULE:SCORER, "
            "judge:MODEL?template=NAME, cascade:MARGIN,SCORER,judge:MODEL, or one of "
            f"{', '.join(BASELINES)}"
        )
    return _reward_model(spec, model, device, engine, None)


def _is_ensemble(spec: str) -> bool:
    return (Path(spec) / ENSEMBLE).is_file()


def _wrapper(spec: str, model: str | None, device: str, engine: Engine | None) -> Scorer:
    """A scorer that asks others; folders on one backbone share it."""

    def opened(specs: Sequence[str]) -> dict[str, Scorer]:
        return open_scorers(specs, model=model, device=device, engine=engine)

    kind, _, rest = spec.partition(":")
    if kind == "calibrated":
        from retrm.scorers.length_calibrated import StoredCalibration

        stored = StoredCalibration.load(Path(rest))
        (inner,) = opened([stored.scorer]).values()
        return stored.attached(inner, name=spec)
    if kind == "objectives":
        from retrm.scorers.objectives import ObjectivePanel, parse_panel

        named = parse_panel(rest)
        members = opened(list(named.values())).values()
        return ObjectivePanel(dict(zip(named, members, strict=True)), name=spec)
    if kind == "steps":
        from retrm.scorers.steps import StepScorer, check_rule

        rule, colon, judge = rest.partition(":")
        if not colon or not judge:
            raise RecipeError(
                f"got {spec!r}; expected steps:RULE:SCORER, such as steps:min:hf:DIR with a rule min, "
                "product, mean or last"
            )
        check_rule(rule)
        (inner,) = opened([judge]).values()
        return StepScorer(inner, rule, name=spec)  # type: ignore[arg-type]
    from retrm.scorers.ensemble import EnsembleScorer, EnsembleSpec
    from retrm.scorers.reward_model import RewardModel
    from retrm.scorers.sequence_classifier import SequenceClassifier

    typed = EnsembleSpec.parse(rest) if kind == "ensemble" else EnsembleSpec.load(Path(spec))
    found = opened(typed.folders)
    models = [one for one in found.values() if isinstance(one, RewardModel | SequenceClassifier)]
    if len(models) < len(found):
        strangers = [n for n, one in found.items() if one not in models]
        raise RecipeError(
            f"{', '.join(strangers)} in {spec} is no folder of a reward model; expected folders made by "
            "retrm fit, or hf:DIR"
        )
    name = spec if kind == "ensemble" else Path(spec).name
    return EnsembleScorer.of_models(models, rule=typed.rule, name=name)


def _remote(kind: str, url: str, model: str | None) -> Scorer:
    from retrm.scorers.remote import DIALECTS, RemoteScorer

    renderer = None
    if model is not None and kind.startswith("polar-"):
        from retrm.scorers.polar import PolarText

        renderer = PolarText.load(model)
    elif model is not None and DIALECTS[kind].needs_tokenizer:
        from retrm.backbone.load import load_renderer

        renderer = load_renderer(model)
    return RemoteScorer(kind, url, renderer=renderer)
