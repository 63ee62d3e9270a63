"""Every picture of an audit as PNG, with what it shows and what would support or refute the claim.

Drawn from `AuditTables` and nothing else, so that a stored audit can be drawn again without its model.
A picture whose rows are missing is left out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from retrm.audit.tables import AuditTables
from retrm.files import atomic_write
from retrm.reports.audit_cells import (
    band_figure,
    heat_map_figure,
    layer_figure,
    learning_figure,
    width_figure,
)
from retrm.reports.audit_outcomes import (
    best_of_k_figure,
    contrasts_figure,
    interventions_figure,
    length_figure,
)
from retrm.reports.audit_states import energy_figure, overlap_figure, spectrum_figure
from retrm.reports.canvas import check_plotting, png_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class FigureKind:
    """A picture that an audit may have.

    Attributes:
        name: stem of its file.
        title: the question it answers, above it in the report.
        shows: how to read it.
        supports: what it would look like if the claim about the reasoning subspace were true.
        refutes: what it would look like if it were not.
        tables: the tables it is drawn from.
        draw: the figure, or None where its rows are missing.
    """

    name: str
    title: str
    shows: str
    supports: str
    refutes: str
    tables: tuple[str, ...]
    draw: "Callable[[AuditTables], Figure | None]"


@dataclass(frozen=True)
class Picture:
    """A drawn figure: its kind and its PNG file as bytes."""

    kind: FigureKind
    png: bytes


FIGURES: tuple[FigureKind, ...] = (
    FigureKind(
        "contrasts",
        "How sure are the differences?",
        "Every point is one kind of features minus another on the same prompts; the bar is its 95 % "
        "interval over prompts, heads held fixed. The shaded strip is the margin within which a "
        "difference does not matter. Only the primary contrast, and the one against the full state, were "
        "fixed before looking; of the others those at the same width are shown, and all are in "
        "contrasts.parquet.",
        "The primary interval (reasoning minus random) lies wholly to the right of zero, and hardly "
        "any single random subspace does as well: rank p of .025 or less among 39 or more.",
        "It lies within the margin, or to the left of zero with hardly any random subspace as bad. An "
        "interval that crosses both zero and the margin decides nothing; one that excludes zero "
        "while more random subspaces lie as far out is within their spread.",
        ("contrasts",),
        contrasts_figure,
    ),
    FigureKind(
        "width",
        "How many directions does it take?",
        "A head of the same kind on m directions of the state, for several ways to choose them. The "
        "grey band covers random subspaces of that size; the thin bars are 95 % intervals of the "
        "reasoning line; the black line is the full state.",
        "The reasoning line runs above the grey band, and comes close to the full state at small m.",
        "It runs inside or below the band: any m directions would have done as well, and the "
        "spectrum of the LM head plays no part.",
        ("cells",),
        width_figure,
    ),
    FigureKind(
        "band",
        "Is it the end of the spectrum, or any part of it?",
        "The same number of neighbouring singular directions, taken from the loudest end of the "
        "spectrum to the quietest.",
        "A peak at the right end, above the grey band of random subspaces.",
        "A flat line, or a peak anywhere else.",
        ("cells",),
        band_figure,
    ),
    FigureKind(
        "spectrum",
        "What does the LM head hardly see?",
        "Singular values of the LM head with the cut marked; beneath, for every single direction, "
        "the distance between the means of right and wrong answers and its share of the states' "
        "energy. One direction says little about what many do together.",
        "A drop at the cut, and behind it at least as much separation as before it.",
        "No drop at the cut, or less separation behind it than before.",
        ("spectrum", "directions"),
        spectrum_figure,
    ),
    FigureKind(
        "layers",
        "Does it hold at other layers?",
        "The last layer is one among many. The states of every layer are passed through the final "
        "norm and read with the LM head as it stands, as if the model ended there (a logit-lens "
        "reading). A layer before the last was not trained to be read so.",
        "The reasoning line runs above the grey band at most layers, not at a few picked afterwards.",
        "It runs inside or below the band. If the full state of a middle layer beats everything at "
        "the last one, the choice of the layer matters more than that of the subspace.",
        ("cells",),
        layer_figure,
    ),
    FigureKind(
        "heat_map",
        "Layers and kinds of features at a glance",
        "The same figures as a map; random is the mean over its draws, so it varies less than one "
        "subspace does.",
        "The reasoning row is brighter than the random row.",
        "The two rows look alike: what varies is the layer.",
        ("cells",),
        heat_map_figure,
    ),
    FigureKind(
        "learning",
        "Does it help where labels are few?",
        "The same heads fitted on fewer prompts; the test prompts stay.",
        "At the left end the reasoning line lies above the grey band and the full state: a good "
        "prior pays most where labels are few.",
        "It never leaves the band. A line above the full state but inside the band shows only that "
        "fewer dimensions need fewer labels.",
        ("cells",),
        learning_figure,
    ),
    FigureKind(
        "best_of_k",
        "Does it pick better answers?",
        "Accuracy when k candidates are drawn and the one with the highest score is kept, an exact "
        "expectation over all subsets. Majority votes need no score; the oracle keeps a right "
        "answer whenever there is one. Random is the mean over random subspaces. The scores are those "
        "of one way to split the prompts; the tables give the mean over all of them, so the right end "
        "differs a little from theirs.",
        "The reasoning curve rises above random, majority and log-probability.",
        "It runs with or below random or log-probability, which costs nothing to read.",
        ("curves",),
        best_of_k_figure,
    ),
    FigureKind(
        "length",
        "Is it only length?",
        "Out-of-fold scores of the answers against their number of tokens, with Pearson's "
        "correlation over all answers and within prompts. Random is one random subspace, the first.",
        "Right and wrong answers lie apart at every length, and the correlation is small.",
        "The correlation is large and the two clouds overlap at equal length: the head reads length.",
        ("answers",),
        length_figure,
    ),
    FigureKind(
        "energy",
        "Where do the states lie?",
        "The share of a state's squared norm in each subspace. The first tokens stand apart: models "
        "use them as attention sinks, with huge states that write nothing.",
        "Tokens of the answer carry more than chance in the reasoning subspace.",
        "Only the first tokens do: then the subspace is where attention sinks are kept. Energy alone "
        "never shows what a direction is for.",
        ("energy",),
        energy_figure,
    ),
    FigureKind(
        "overlap",
        "Is it one subspace, or a matter of convention?",
        "Mean squared cosine between the reasoning subspaces of the LM head as it is, with the gain "
        "of the final norm folded in, and without its mean row.",
        "High values: the subspace is a property of the model.",
        "Values near chance: the subspace is a property of one convention, and a finding in one of "
        "them says little about the others.",
        ("overlap",),
        overlap_figure,
    ),
    FigureKind(
        "interventions",
        "Does the model use it?",
        "A component of the state is removed while the model works. A head that reads something is "
        "no proof that the model uses it; this is nearer to one. The dashed line is the untouched "
        "model; points are single random draws.",
        "Removing the reasoning component costs accuracy, clearly more than removing random ones of "
        "the same size, and more than random ones that take out the same energy.",
        "It costs no more than random ones of the same size, or of the same energy: subspaces of one "
        "size hold unequal energy. Removing the semantic component must hurt: it is what the logits "
        "are made of.",
        ("interventions",),
        interventions_figure,
    ),
)


def draw_audit(tables: AuditTables) -> tuple[Picture, ...]:
    """All pictures that the tables have rows for, in the order of the report.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    check_plotting()
    drawn = []
    for kind in FIGURES:
        figure = kind.draw(tables)
        if figure is not None:
            drawn.append(Picture(kind, png_bytes(figure)))
    return tuple(drawn)


def write_pictures(folder: str | Path, pictures: Sequence[Picture]) -> tuple[Path, ...]:
    """Write NAME.png for each; the paths in the same order.

    Pictures of an earlier run, from tables that this one does not have, are removed.

    Raises:
        OutputError: the folder cannot be written.
    """
    paths = tuple(Path(folder) / f"{picture.kind.name}.png" for picture in pictures)
    for path, picture in zip(paths, pictures, strict=True):
        with atomic_write(path) as out:
            out.write(picture.png)
    for kind in FIGURES:
        stale = Path(folder) / f"{kind.name}.png"
        if stale not in paths and stale.is_file():
            stale.unlink()
    return paths
