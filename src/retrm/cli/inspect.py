"""`retrm inspect`: what is inside a language model, a reward-model folder or a feature store."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from retrm.cli.console import err, out, print_json, size_in_words
from retrm.features.caveat import CAVEAT


def inspect(
    target: str, /, *, plot: Path | None = None, verify: bool = False, json: bool = False
) -> None:
    """Show the layers and the LM head's spectrum of a model, or what a reward model is made of.

    A reward model is read without loading its backbone. Of stored features (`retrm fit
    --keep-features`) it shows how many there are and the bytes per token.

    Parameters
    ----------
    target
        smollm2-135m, fake, a folder, a GGUF file or a hub name; or a folder made by retrm fit, or
        the features that it kept.
    plot
        PNG file to write with the spectrum (models only).
    verify
        Compare every byte of stored features with its checksum, not sizes and headers alone; a
        reward model is always compared.
    json
        Print one JSON object on stdout.
    """
    if (Path(target) / "reward_model.json").is_file():
        _inspect_reward_model(Path(target), plot, json)
    elif _is_store(Path(target)):
        _inspect_store(Path(target), plot, verify, json)
    else:
        _check_folder(Path(target))
        _inspect_model(target, plot, json)


def _check_folder(folder: Path) -> None:
    """Refuse other folders of retrm, which are no models, with what can be inspected in them."""
    from retrm.errors import ArtifactError

    if not folder.is_dir() or (folder / "config.json").is_file():
        return
    places = ("*", "*/*")
    inside = [path.parent for place in places for path in folder.glob(f"{place}/reward_model.json")]
    inside += [path for path in folder.glob("*") if path.is_dir() and _is_store(path)]
    pages = {"eval": folder / "report.html", "audit": folder / "audit.html"}
    wrote = [verb for verb, page in pages.items() if page.is_file()]
    expected = "expected a model, a reward model, or features that retrm fit kept"
    if inside:
        names = ", ".join(map(str, sorted(inside)))
        raise ArtifactError(
            f"{folder} is none itself, {len(inside)} lie below it; {expected}. Name one of them: {names}"
        )
    if wrote:
        raise ArtifactError(
            f"{folder} holds what retrm {wrote[0]} found; {expected}. See {pages[wrote[0]]}"
        )


# ---------------------------------------------------------------------- model


def _inspect_model(target: str, plot: Path | None, as_json: bool) -> None:
    from retrm.backbone.load import load_backbone
    from retrm.features.spectrum import spectrum

    if plot is not None:
        # A missing matplotlib, or a place that cannot be written, is told before a model is loaded.
        from retrm.files import check_new_file
        from retrm.reports.canvas import check_plotting

        check_plotting()
        check_new_file(plot)
    backbone = load_backbone(target, on_progress=lambda words: err.print(words, markup=False))
    err.print("computing the spectrum of the LM head", markup=False)
    raw, folded = (spectrum(backbone.unembedding, p) for p in ("post_norm", "residual"))
    facts = _facts(backbone)
    if plot is not None:
        from retrm.reports.spectrum import spectrum_png

        spectrum_png(plot, raw, folded, title=Path(target).name)
    if as_json:
        spectra = {"raw": raw.as_dict(), "folded": folded.as_dict()}
        print_json({**facts, "spectrum": spectra, "plot": plot, "note": CAVEAT})
        return
    _print_facts(facts["name"], _in_words(facts))
    _print_spectra(raw, folded)
    out.print(_reading(raw), markup=False)
    out.print(CAVEAT, markup=False)
    if plot is not None:
        out.print(f"wrote {plot}", markup=False)


def _facts(backbone: Any) -> dict[str, Any]:
    head, model = backbone.unembedding, getattr(backbone, "model", None)
    renderer = backbone.renderer
    return {
        "name": backbone.name,
        "family": getattr(getattr(backbone, "located", None), "model_type", "toy"),
        "n_layers": backbone.n_layers,
        "width": backbone.width,
        "vocab_size": backbone.vocab_size,
        "context_length": backbone.context_length,
        "norm_kind": head.norm_kind,
        "norm_eps": head.eps,
        "is_tied": head.is_tied,
        "has_logit_bias": head.bias is not None,
        "logit_scale": head.logit_scale,
        "softcap": head.softcap,
        "dtype": str(backbone.dtype).removeprefix("torch."),
        "n_params": None if model is None else sum(p.numel() for p in model.parameters()),
        "shares_prompts": backbone.shares_prompts,
        "template_notes": list(getattr(renderer, "notes", ())),
        "fingerprint": vars(backbone.fingerprint),
    }


def _in_words(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    n_layers, logits = facts["n_layers"], []
    if facts["logit_scale"] != 1:
        logits.append(f"scaled by {facts['logit_scale']:.4g}")
    if facts["softcap"]:
        logits.append(f"capped at {facts['softcap']:g}")
    if facts["has_logit_bias"]:
        logits.append("with a bias")
    n_params = facts["n_params"]
    return [
        ("family", facts["family"]),
        (
            "layers",
            f"{n_layers} blocks: layer 0 = embedding output, layer i = output of block i, "
            f"layer {n_layers} before (residual) and after (post_norm) the final norm",
        ),
        ("width", f"{facts['width']:,}"),
        ("vocabulary", f"{facts['vocab_size']:,} rows of the LM head"),
        ("context", f"{facts['context_length']:,} tokens"),
        ("final norm", f"{_norm(facts['norm_kind'])}, eps {facts['norm_eps']:.3g}"),
        ("LM head", "tied to the embedding" if facts["is_tied"] else "has weights of its own"),
        *([("logits", ", ".join(logits))] if logits else []),
        ("parameters", "unknown" if n_params is None else f"{n_params:,}"),
        ("loaded as", facts["dtype"]),
        (
            "shared prompts",
            "a prompt is read once for all its answers"
            if facts["shares_prompts"]
            else "every answer is read with its prompt",
        ),
        ("template", "; ".join(facts["template_notes"]) or "nothing unusual"),
    ]


def _norm(kind: str) -> str:
    return {"rms": "RMSNorm", "layer": "LayerNorm"}[kind]


def _print_facts(title: str, facts: Sequence[tuple[str, str]]) -> None:
    from rich.table import Table
    from rich.text import Text

    shown = Table.grid(padding=(0, 2))
    shown.add_column(style="bold", no_wrap=True)
    shown.add_column(overflow="fold")
    for name, value in facts:
        shown.add_row(name, Text(value))
    out.print(title, style="bold", markup=False)
    out.print(shown, soft_wrap=False)
    out.print()


def _print_spectra(raw: Any, folded: Any) -> None:
    from retrm.cli.console import table

    # A folded LayerNorm has one direction less, so the places of the cut may differ by one.
    n = len(raw.singular_values)
    rows = [
        ("for states at", *(found.point for found in (raw, folded))),
        ("s_1", *(f"{found.singular_values[0]:.2f}" for found in (raw, folded))),
        ("s_1 / s_2", *(f"{found.first_ratio:.2f}" for found in (raw, folded))),
        ("above the cut", *(f"{found.above_cut:.3f}" for found in (raw, folded))),
        ("below the cut", *(f"{found.below_cut:.3f}" for found in (raw, folded))),
        ("ratio at the cut (1 = no gap)", *(f"{found.gap_ratio:.3f}" for found in (raw, folded))),
        ("last", *(f"{found.singular_values[-1]:.3f}" for found in (raw, folded))),
        ("energy behind the cut", *(f"{found.tail_share:.2%}" for found in (raw, folded))),
        ("rms behind the cut", *(f"{found.tail_rms:.2f}" for found in (raw, folded))),
        ("rms of the rest but s_1", *(f"{found.rest_rms:.2f}" for found in (raw, folded))),
    ]
    title = f"LM head: reasoning:5% = last {raw.n_tail} of {n} directions"
    out.print(table(title, ("", "raw W", "W diag(gain)"), rows), soft_wrap=False)


def _reading(raw: Any) -> str:
    gap = (
        "There is no spectral gap at the cut"
        if raw.gap_ratio < 1.1
        else "There is a gap at the cut"
    )
    return (
        f"{gap} ({raw.above_cut:.4g} against {raw.below_cut:.4g}); a direction behind it is "
        f"{raw.loudness:.2g} times as loud as a typical one (0 = invisible to the LM head)."
    )


# --------------------------------------------------------------- reward model


def _inspect_reward_model(folder: Path, plot: Path | None, as_json: bool) -> None:
    import json

    from retrm.errors import RecipeError
    from retrm.heads.artifact import MANIFEST, load_artifact

    if plot is not None:
        raise RecipeError(
            "--plot draws the spectrum of a model, but this is a reward-model folder. Inspect its "
            "backbone instead"
        )
    artifact = load_artifact(folder)  # checks version and checksums
    manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
    if as_json:
        print_json({**manifest, "n_selftest": len(artifact.selftest)})
        return
    _print_facts(str(folder), _reward_model_in_words(manifest, artifact))
    _print_metrics(manifest["metrics"])
    if artifact.recipe.subspace.startswith("reasoning"):
        out.print(CAVEAT, markup=False)


def _reward_model_in_words(manifest: Mapping[str, Any], artifact: Any) -> list[tuple[str, str]]:
    recipe, head, backbone = manifest["recipe"], manifest["head"], manifest["backbone"]
    end = "counted" if recipe["counts_end"] else "not counted"
    options = ", ".join(f"{k} {_value(v)}" for k, v in head["options"].items())
    prints = ", ".join(f"{k} {v[:8]}" for k, v in backbone["fingerprint"].items())
    return [
        ("method", manifest["method"]),
        (
            "backbone",
            f"{backbone['name']}: {backbone['n_layers']} blocks, width {backbone['width']:,}, "
            f"{backbone['dtype']}",
        ),
        ("fingerprints", prints),
        ("layers", f"{recipe['layers']}, at {recipe['point']}, source {recipe['source']}"),
        ("subspace", _subspaces(recipe, manifest["subspaces"])),
        ("pooling", f"{recipe['pooling']}, end-of-turn token {end}, kept in {recipe['dtype']}"),
        *_context_in_words(artifact.recipe.context),
        (
            "head",
            f"{head['name']} on {head['n_features']:,} features, {head['n_params']:,} parameters"
            + (f" ({options})" if options else ""),
        ),
        ("loss", manifest["loss"]),
        *(
            (f"fitted: {name.replace('_', ' ')}", _value(value))
            for name, value in _without_epochs(manifest["fitted"]).items()
        ),
        ("self-test", f"{len(artifact.selftest)} answers, replayed on load"),
        ("versions", ", ".join(f"{k} {v}" for k, v in manifest["versions"].items() if v)),
    ]


def _context_in_words(context: str) -> list[tuple[str, str]]:
    if context == "none":
        return []
    return [("context", "post_norm state of the last layer at the end of the prompt, full width")]


def _subspaces(recipe: Mapping[str, Any], stored: Mapping[str, Any]) -> str:
    parts = [
        f"{facts['n_dims']} directions at {point} from {facts['n_vocab_rows']:,} rows"
        for point, facts in stored.items()
    ]
    return "; ".join([recipe["subspace"], *parts])


def _without_epochs(fitted: Mapping[str, Any]) -> dict[str, Any]:
    """The account of a fit, the list of its epochs as the number of them and the one that was kept."""
    epochs, kept = fitted.get("epochs"), fitted.get("kept_epoch")
    if not isinstance(epochs, list):
        return dict(fitted)
    at = [epoch for epoch in epochs if isinstance(epoch, Mapping) and epoch.get("number") == kept]
    shown = {"epochs": len(epochs), "kept_epoch": at[0] if at else kept}
    return {**fitted, **{name: value for name, value in shown.items() if name in fitted}}


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k.replace('_', ' ')} {_value(v)}" for k, v in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(_value(v) for v in value) or "none"
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _print_metrics(metrics: Mapping[str, Any]) -> None:
    from retrm.cli.console import table

    rows = metrics.get("rows")
    if not rows:
        out.print("No held-out figures were measured (fitted without a test part).", markup=False)
        return
    if "n_pairs" in metrics:
        title = f"Held-out: {metrics['n_pairs']} pairs of {metrics['n_prompts']} prompts"
        columns, names = ("", "pair accuracy"), ("accuracy",)
    else:
        title = (
            f"Held-out: {metrics['n_prompts']} prompts, {metrics['n_mixed']} with right and wrong"
        )
        columns = ("", "pooled AUROC", "within-prompt AUROC", "best-of-N")
        names = ("pooled_auroc", "within_auroc", "best_of_n")
    cells = [(row["name"], *(_interval(row.get(name)) for name in names)) for row in rows]
    out.print(table(title, columns, cells), soft_wrap=False)
    out.print("95 % intervals, prompts resampled.", markup=False)


def _interval(found: Mapping[str, float] | None) -> str:
    from retrm.metrics import format_interval
    from retrm.reports.words import NONE

    if found is None:
        return NONE
    return format_interval(found["value"], found["low"], found["high"])


# ---------------------------------------------------------------------- store


def _is_store(folder: Path) -> bool:
    if (folder / "config.json").is_file():
        return False
    return (folder / "manifest.json").is_file() or any(folder.glob("shard-*.safetensors"))


def _inspect_store(folder: Path, plot: Path | None, verify: bool, as_json: bool) -> None:
    from retrm.errors import RecipeError
    from retrm.store.summary import summary_of

    if plot is not None:
        raise RecipeError(
            "--plot draws the spectrum of a model, but this is a feature store. Inspect its "
            "backbone instead"
        )
    found = summary_of(folder, verify=verify)
    if as_json:
        print_json(found.as_dict())
        return
    _print_facts(str(folder), _store_in_words(found))
    _print_costs(found)


def _store_in_words(found: Any) -> list[tuple[str, str]]:
    prints = ", ".join(f"{k} {v[:8]}" for k, v in found.manifest.fingerprint.items())
    return [
        (
            "reading",
            "finished" if found.is_finished else "not finished: the same command goes on there",
        ),
        ("answers", f"{found.n_answers:,}"),
        (
            "tokens",
            f"{found.n_tokens:,} of the answers"
            if found.n_tokens is not None
            else "not known: no recipe keeps tokens",
        ),
        (
            "files",
            f"{found.n_shards} shards, {size_in_words(found.n_bytes)} with the index; "
            + (
                "every byte agrees with its checksum"
                if found.is_verified
                else "sizes and headers agree with the manifest (checksums are compared with --verify, "
                "and when a reading opens it)"
            ),
        ),
        ("multiplied in", found.manifest.precision.removeprefix("torch.")),
        (
            "states from",
            "the model itself"
            if found.manifest.states_from == "model"
            else f"the engine {found.manifest.states_from}",
        ),
        ("fingerprints", prints),
    ]


def _print_costs(found: Any) -> None:
    from retrm.cli.console import table

    rows = [
        (
            recipe.name,
            f"{recipe.n_features:,} x {recipe.dtype}",
            f"{recipe.bytes_per_row:,} B a{'n' * (recipe.kept_per == 'answer')} {recipe.kept_per}",
            "" if recipe.bytes_per_token is None else f"{recipe.bytes_per_token:,.1f}",
            size_in_words(recipe.n_bytes),
        )
        for recipe in found.recipes
    ]
    columns = ("recipe", "features", "each", "bytes per token", "in all")
    out.print(table("What is kept", columns, rows), soft_wrap=False)
