"""A reward model on disk: a folder of four plain files, no pickle.

    reward_model.json     format version, method, recipe, backbone and fingerprints, how and on what
                          it was fitted, metrics with intervals, library versions, checksums
    head.safetensors      weights, and the subspace bases where used
    selftest.json         a few rendered token ids with the scores they must give
    README.md             a model card

Files are prepared in full before the first one takes its name, and `reward_model.json`, which holds
the checksums of the others, is renamed last: an interrupted save leaves the old model or a refusal.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save

from retrm.backbone.base import Fingerprint, Rendered
from retrm.errors import ArtifactError, OutputError, RecipeError, did_you_mean
from retrm.features.recipe import Recipe
from retrm.features.subspace import Subspace
from retrm.files import atomic_write, check_writable
from retrm.heads.base import Head
from retrm.heads.registry import make_head

FORMAT_VERSION = 1
MANIFEST, WEIGHTS, SELFTEST, CARD = (
    "reward_model.json",
    "head.safetensors",
    "selftest.json",
    "README.md",
)
LIBRARIES = ("retrm", "torch", "transformers", "numpy", "safetensors")


@dataclass(frozen=True)
class BackboneIdentity:
    """What the head belongs to: a name to load and the fingerprint it must then have."""

    name: str
    fingerprint: Fingerprint
    dtype: str
    n_layers: int
    width: int


@dataclass(frozen=True)
class SelfTestItem:
    """One rendered answer and the score it must give."""

    rendered: Rendered
    score: float


@dataclass(frozen=True)
class Artifact:
    """Everything in the folder.

    Attributes:
        method: name of the preset it started from.
        recipe: which states it reads.
        head: the fitted head.
        loss: that it was fitted with.
        bases: subspace basis per state point; empty for the full state.
        backbone: what it belongs to.
        selftest: replayed on load.
        fitted: data, counts, options and seed of the fit; plain JSON.
        metrics: held-out figures with intervals and baselines; plain JSON.
    """

    method: str
    recipe: Recipe
    head: Head
    loss: str
    bases: Mapping[str, Subspace]
    backbone: BackboneIdentity
    selftest: Sequence[SelfTestItem]
    fitted: Mapping[str, Any]
    metrics: Mapping[str, Any]


def save_artifact(folder: Path, artifact: Artifact, card: str) -> None:
    """Write the four files; an existing reward model is replaced, other files are left alone.

    Raises:
        OutputError: the folder cannot be written, or it is a file.
    """
    folder = Path(folder)
    check_target(folder)
    weights = save(_tensors(artifact), metadata={"format": "pt"})
    selftest = _json([_selftest_dict(item) for item in artifact.selftest])
    manifest = _manifest(artifact)
    manifest["files"] = {
        WEIGHTS: _sha256(weights),
        SELFTEST: _sha256(selftest),
    }
    files = {WEIGHTS: weights, SELFTEST: selftest, CARD: card.encode(), MANIFEST: _json(manifest)}
    # Nested contexts: all four are complete on disk before any is renamed; the manifest, entered
    # first, is renamed last.
    with (
        atomic_write(folder / MANIFEST) as manifest_file,
        atomic_write(folder / CARD) as card_file,
        atomic_write(folder / SELFTEST) as selftest_file,
        atomic_write(folder / WEIGHTS) as weights_file,
    ):
        for file, name in (
            (manifest_file, MANIFEST),
            (card_file, CARD),
            (selftest_file, SELFTEST),
            (weights_file, WEIGHTS),
        ):
            file.write(files[name])
            file.flush()


def check_target(folder: Path) -> None:
    """Refuse an output folder that cannot take a reward model, before any work; nothing is left there.

    Raises:
        OutputError: it is a file, or neither it nor its parent can be written.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file; expected a folder for the reward model")
    check_writable(folder)


def load_artifact(folder: Path) -> Artifact:
    """Read and check the folder; no language model is touched.

    Raises:
        ArtifactError: missing folder or file, damaged file, unknown version, missing weight.
    """
    folder = Path(folder)
    manifest = _read_manifest(folder)
    contents = {name: _read_checked(folder, name, manifest) for name in (WEIGHTS, SELFTEST)}
    try:
        recipe = Recipe.from_dict(manifest["recipe"])
        tensors = load(contents[WEIGHTS])
        selftest = [_selftest_item(item) for item in json.loads(contents[SELFTEST])]
        backbone = manifest["backbone"]
        identity = BackboneIdentity(
            name=backbone["name"],
            fingerprint=Fingerprint(**backbone["fingerprint"]),
            dtype=backbone["dtype"],
            n_layers=backbone["n_layers"],
            width=backbone["width"],
        )
        head = _build_head(folder, manifest["head"], tensors)
        bases = _build_bases(folder, manifest["subspaces"], tensors)
        facts = {key: manifest[key] for key in ("method", "loss", "fitted", "metrics")}
    except (KeyError, TypeError, SafetensorError) as error:
        raise ArtifactError(
            f"{folder / MANIFEST} is not complete ({type(error).__name__}: {error}); expected a "
            "folder written by retrm fit. Fit again or restore the file"
        ) from error
    except RecipeError as error:
        raise ArtifactError(f"{folder / MANIFEST}: {error}") from error
    return Artifact(
        recipe=recipe, head=head, bases=bases, backbone=identity, selftest=selftest, **facts
    )


def identity_of(artifact: Artifact) -> str:
    """Sixteen hex digits: two models with the same ones give the same scores, whatever they are called.

    Of recipe, head, weights and backbone; not of name, metrics or how it was fitted.
    """
    facts = {
        "recipe": artifact.recipe.to_dict(),
        "head": [artifact.head.name, artifact.head.options],
        "backbone": asdict(artifact.backbone.fingerprint),
        "dtype": artifact.backbone.dtype,
    }
    return _sha256(_json(facts) + save(_tensors(artifact)))[:16]


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not folder.is_dir():
        if folder.exists():
            raise ArtifactError(
                f"{folder} is a file; expected the folder of a reward model, made by retrm fit"
            )
        beside = [p.name for p in folder.parent.iterdir()] if folder.parent.is_dir() else []
        raise ArtifactError(
            f"there is no folder {folder}; expected a reward model made by retrm fit. "
            f"{did_you_mean(folder.name, beside) if beside else ''}".strip()
        )
    if not path.is_file():
        inside = sorted(p.parent.name for p in folder.glob(f"*/{MANIFEST}"))
        if inside:
            raise ArtifactError(
                f"{folder} holds {len(inside)} reward models, one a method; name one of them: "
                f"{', '.join(str(folder / name) for name in inside)}"
            )
        raise ArtifactError(
            f"{folder} has no {MANIFEST}; expected a reward model made by retrm fit. If this is an "
            "ordinary checkpoint, score it as hf:PATH"
        )
    try:
        manifest = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ArtifactError(f"{path} is damaged ({error}); restore it or fit again") from error
    got = manifest.get("format_version") if isinstance(manifest, dict) else None
    if got != FORMAT_VERSION:
        raise ArtifactError(
            f"{path} has format version {got!r}; this retrm reads version {FORMAT_VERSION}. "
            "Install the retrm that wrote it, or fit again"
        )
    return manifest


def _read_checked(folder: Path, name: str, manifest: Mapping[str, Any]) -> bytes:
    path = folder / name
    if not path.is_file():
        raise ArtifactError(f"{folder} lacks {name}; restore it or fit again")
    content = path.read_bytes()
    expected = manifest.get("files", {}).get(name)
    if _sha256(content) != expected:
        raise ArtifactError(
            f"{path} is damaged: its sha256 is {_sha256(content)[:12]}, {MANIFEST} says "
            f"{str(expected)[:12]}. It was changed, cut short, or a save was interrupted; fit again"
        )
    return content


def _build_head(folder: Path, spec: Mapping[str, Any], tensors: Mapping[str, Any]) -> Head:
    head = make_head(spec["name"], spec["n_features"], spec["options"])
    state = {k.removeprefix("head."): v for k, v in tensors.items() if k.startswith("head.")}
    for name, parameter in head.state_dict().items():
        if name not in state:
            raise ArtifactError(f"{folder / WEIGHTS} lacks the weight {name!r}; fit again")
        if state[name].shape != parameter.shape:
            raise ArtifactError(
                f"{folder / WEIGHTS}: weight {name!r} has shape {tuple(state[name].shape)}, expected "
                f"{tuple(parameter.shape)}; fit again"
            )
    head.load_state_dict(state)
    return head.eval()


def _build_bases(
    folder: Path, spec: Mapping[str, Any], tensors: Mapping[str, Any]
) -> dict[str, Subspace]:
    bases = {}
    for point, facts in spec.items():
        for suffix in ("basis", "singular_values"):
            if f"subspace.{point}.{suffix}" not in tensors:
                raise ArtifactError(
                    f"{folder / WEIGHTS} lacks the {point} subspace {suffix}; a recomputed basis "
                    "would make the weights meaningless. Fit again"
                )
        bases[point] = Subspace(
            basis=tensors[f"subspace.{point}.basis"],
            singular_values=tensors[f"subspace.{point}.singular_values"],
            point=point,  # type: ignore[arg-type]
            part=facts["part"],
            n_vocab_rows=facts["n_vocab_rows"],
        )
    return bases


def _tensors(artifact: Artifact) -> dict[str, Any]:
    tensors = {f"head.{k}": v.contiguous() for k, v in artifact.head.state_dict().items()}
    for point, subspace in artifact.bases.items():
        tensors[f"subspace.{point}.basis"] = subspace.basis.contiguous()
        tensors[f"subspace.{point}.singular_values"] = subspace.singular_values.contiguous()
    return tensors


def _manifest(artifact: Artifact) -> dict[str, Any]:
    head = artifact.head
    return {
        "format_version": FORMAT_VERSION,
        "method": artifact.method,
        "recipe": artifact.recipe.to_dict(),
        "head": {
            "name": head.name,
            "n_features": head.n_features,
            "options": head.options,
            "n_params": head.n_params,
        },
        "loss": artifact.loss,
        "subspaces": {
            point: {"part": s.part, "n_dims": s.n_dims, "n_vocab_rows": s.n_vocab_rows}
            for point, s in artifact.bases.items()
        },
        "backbone": asdict(artifact.backbone),
        "fitted": artifact.fitted,
        "metrics": artifact.metrics,
        "versions": library_versions(),
    }


def _selftest_dict(item: SelfTestItem) -> dict[str, Any]:
    r = item.rendered
    return {"ids": list(r.ids), "start": r.start, "stop": r.stop, "score": item.score}


def _selftest_item(values: Mapping[str, Any]) -> SelfTestItem:
    missing = [k for k in ("ids", "start", "stop", "score") if k not in values]
    if missing:
        raise KeyError(missing[0])
    rendered = Rendered(tuple(values["ids"]), values["start"], values["stop"])
    return SelfTestItem(rendered, values["score"])


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def library_versions() -> dict[str, str | None]:
    """Of the libraries that a score depends on; None where one is not installed."""
    return {name: _version(name) for name in LIBRARIES}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
