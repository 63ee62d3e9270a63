"""What a store holds and what it costs, without loading features or a backbone."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from retrm.store.index import DERIVED
from retrm.store.manifest import FORMAT_VERSION, Manifest, bytes_per_row
from retrm.store.shard_file import check_size, contents_of


@dataclass(frozen=True)
class StoredRecipe:
    """What one recipe costs.

    Attributes:
        name: of the recipe.
        kept_per: `token` or `answer`.
        n_features: numbers a row.
        dtype: of the numbers.
        bytes_per_row: features of one token, or of one answer.
        bytes_per_token: features over response tokens; None where no recipe of the store keeps
            tokens, so that their number is not known.
        n_bytes: features in all.
    """

    name: str
    kept_per: str
    n_features: int
    dtype: str
    bytes_per_row: int
    bytes_per_token: float | None
    n_bytes: int


@dataclass(frozen=True)
class StoreSummary:
    """What a store holds.

    Attributes:
        n_answers: stored; answers with the same content count once.
        n_tokens: response tokens; None where every recipe pools.
        n_shards: files.
        n_bytes: of shards and index.
        is_finished: whether the reading came to its end.
        recipes: one entry each.
        manifest: recipes, fingerprint and precision as they were stored.
    """

    n_answers: int
    n_tokens: int | None
    n_shards: int
    n_bytes: int
    is_finished: bool
    recipes: tuple[StoredRecipe, ...]
    manifest: Manifest

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "format_version": FORMAT_VERSION,
            "n_answers": self.n_answers,
            "n_tokens": self.n_tokens,
            "n_shards": self.n_shards,
            "n_bytes": self.n_bytes,
            "is_finished": self.is_finished,
            "features": {recipe.name: asdict(recipe) for recipe in self.recipes},
            "recipes": self.manifest.recipes,
            "fingerprint": self.manifest.fingerprint,
            "precision": self.manifest.precision.removeprefix("torch."),
        }


def summary_of(folder: Path) -> StoreSummary:
    """Read the manifest of `folder` and compare the sizes and headers of its files with it.

    Checksums, which need every byte, are compared when a reading or `open_store` opens it.

    Raises:
        StoreError: no store, or sizes and headers that are not what the manifest says.
    """
    manifest = Manifest.load(folder)
    for shard in manifest.shards:
        check_size(folder, shard)
        contents_of(folder, shard, manifest)
    files = [*manifest.shards]
    if manifest.index is not None:
        check_size(folder, manifest.index, remedy=DERIVED)
        files.append(manifest.index)
    return StoreSummary(
        n_answers=manifest.n_answers,
        n_tokens=manifest.n_tokens,
        n_shards=len(manifest.shards),
        n_bytes=sum(file.bytes for file in files),
        is_finished=manifest.index is not None,
        recipes=_costs(manifest),
        manifest=manifest,
    )


def _costs(manifest: Manifest) -> tuple[StoredRecipe, ...]:
    out = []
    for name, layout in manifest.layouts.items():
        each = bytes_per_row(layout)
        n_bytes = each * (manifest.n_answers if layout.is_pooled else manifest.n_tokens or 0)
        out.append(
            StoredRecipe(
                name=name,
                kept_per="answer" if layout.is_pooled else "token",
                n_features=layout.n_features,
                dtype=str(layout.dtype).removeprefix("torch."),
                bytes_per_row=each,
                bytes_per_token=n_bytes / manifest.n_tokens if manifest.n_tokens else None,
                n_bytes=n_bytes,
            )
        )
    return tuple(out)
