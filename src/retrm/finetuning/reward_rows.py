"""From a table of answers to the token ids that a reward model is trained on.

Answers are rendered by `ChatRenderer.render_finished`, as the scorer of the finished model renders them:
the last token that is trained on is the last one that is read. Over-long answers follow the one policy of
`retrm.records.OVERLONG`. A pair is cut by the same tokens on both sides, so that what is left of the prompt
is the same, or it is left out whole; everything is counted.

A file whose prompts hold text that a chat template has written already would be rendered twice, and beside
rows of messages it would teach two templates at once: such rows are refused, or taken as plain text and
counted.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from retrm.backbone.base import Rendered
from retrm.backbone.render import ChatRenderer, fit_to_context
from retrm.errors import DataError, FitError, LabelError, RecipeError, did_you_mean
from retrm.finetuning.reward_options import RewardOptions
from retrm.fitting.targets import Targets, check_targets
from retrm.records import Answer, AnswerTable

RenderedText = Literal["error", "keep"]
MOST_LEVELS = 20
# What chat templates write, and people seldom do: ChatML, Llama 3, Llama 2 and Mistral, Gemma, Phi.
_WRITTEN = re.compile(
    r"<\|im_start\|>|<\|start_header_id\|>|\[/?INST\]|<start_of_turn>|<\|(?:user|assistant|system)\|>"
)


@dataclass(frozen=True)
class PairRow:
    """A pair as ids.

    Attributes:
        chosen: rendered.
        rejected: rendered.
        margin: of the data; 0 = none.
        weight: so that every prompt has the same in all.
    """

    chosen: Rendered
    rejected: Rendered
    margin: float
    weight: float


@dataclass(frozen=True)
class AnswerRow:
    """An answer as ids, with what it should score: a label, the position of a level, or ratings."""

    rendered: Rendered
    targets: tuple[float, ...]


@dataclass(frozen=True)
class Rows:
    """What is trained on.

    Attributes:
        rows: of pairs or of answers.
        n_read: pairs or answers before the policy.
        n_truncated: cut to fit.
        n_skipped: left out as over-long.
        n_rendered: that hold what a template had written, and are kept.
        levels: of grades, ascending; empty for other kinds.
        objectives: of ratings; empty for other kinds.
    """

    rows: tuple[PairRow, ...] | tuple[AnswerRow, ...]
    n_read: int
    n_truncated: int = 0
    n_skipped: int = 0
    n_rendered: int = 0
    levels: tuple[float, ...] = ()
    objectives: tuple[str, ...] = ()

    @property
    def n_outputs(self) -> int:
        """Numbers that the model gives for an answer."""
        return len(self.levels) or len(self.objectives) or 1

    @property
    def n_tokens(self) -> int:
        """Of all rows."""
        return sum(len(one.ids) for one in self.rendered)

    @property
    def rendered(self) -> list[Rendered]:
        """Every text; of pairs chosen and rejected in turn."""
        return [
            one
            for row in self.rows
            for one in ((row.chosen, row.rejected) if isinstance(row, PairRow) else (row.rendered,))
        ]


@dataclass(frozen=True)
class Supervision:
    """What a table teaches under a kind, checked and not yet rendered.

    Attributes:
        pairs: (chosen row, rejected row, margin, weight).
        answers: (row, targets).
        levels: of grades.
        objectives: of ratings.
    """

    pairs: tuple[tuple[int, int, float, float], ...] = ()
    answers: tuple[tuple[int, tuple[float, ...]], ...] = ()
    levels: tuple[float, ...] = ()
    objectives: tuple[str, ...] = ()


def supervision_of(
    table: AnswerTable,
    options: RewardOptions,
    *,
    label_threshold: float | None = None,
    levels: Sequence[float] | None = None,
) -> Supervision:
    """What `table` teaches under `options.kind`.

    Args:
        table: of answers.
        options: of the training.
        label_threshold: grades at or above it are right.
        levels: that grades may have; None = those that occur.

    Raises:
        LabelError: labels, pairs, grades or ratings are of another kind, or of one kind only.
        FitError: all answers belong to one prompt.
    """
    if options.kind == "ordinal":
        return _graded(table, levels)
    if options.kind == "ratings":
        return _rated(table)
    targets = Targets.of(table, label_threshold=label_threshold)
    if options.kind == "pairs":
        check_targets(targets, "bradley_terry", options.pairs)
        mean = float(targets.weights.mean())
        columns = zip(
            *(targets.pairs.tolist(), targets.margins.tolist(), targets.weights.tolist()),
            strict=True,
        )
        return Supervision(pairs=tuple((c, r, m, w / mean) for (c, r), m, w in columns))
    check_targets(targets, "bce")
    kept = targets.is_labelled.nonzero().flatten().tolist()
    return Supervision(answers=tuple((row, (float(targets.labels[row]),)) for row in kept))


def _graded(table: AnswerTable, levels: Sequence[float] | None) -> Supervision:
    """Grades as positions of levels."""
    known = np.flatnonzero(~np.isnan(table.labels))
    if not len(known):
        raise LabelError(
            "kind=ordinal needs a grade an answer and the data have none; expected whole numbers on a few "
            "levels. Name the rating to learn: --attribute, or use kind=pairs"
        )
    found = np.unique(table.labels[known])
    wanted = np.array(sorted(levels)) if levels is not None else found
    if len(wanted) < 3 or len(wanted) > MOST_LEVELS:
        raise LabelError(
            f"kind=ordinal got grades on {len(wanted)} level(s), {_short(wanted)}; expected 3 to "
            f"{MOST_LEVELS}. Right and wrong are learnt with kind=correctness, finer numbers with "
            "kind=ratings"
        )
    strange = found[~np.isin(found, wanted)]
    if len(strange):
        row = int(known[np.flatnonzero(table.labels[known] == strange[0])[0]])
        raise LabelError(
            f"{table.answers[row].where or f'row {row}'}: the grade {strange[0]:g} is none of the levels "
            f"{_short(wanted)}; name all levels that raters could give"
        )
    _check_prompts(table, known)
    place = {float(level): i for i, level in enumerate(wanted)}
    answers = tuple((int(row), (float(place[float(table.labels[row])]),)) for row in known)
    return Supervision(answers=answers, levels=tuple(map(float, wanted)))


def _rated(table: AnswerTable) -> Supervision:
    if not table.ratings:
        raise LabelError(
            "kind=ratings needs ratings on one or more objectives and the data have none; name them: "
            "--rating OBJECTIVE:LOW..HIGH, or use kind=pairs or kind=correctness"
        )
    matrix = np.stack(list(table.ratings.values()), axis=1)
    known = np.flatnonzero(~np.isnan(matrix).all(axis=1))
    if not len(known):
        raise LabelError(f"no answer is rated on {', '.join(table.ratings)}; expected some ratings")
    _check_prompts(table, known)
    answers = tuple((int(row), tuple(map(float, matrix[row]))) for row in known)
    return Supervision(answers=answers, objectives=tuple(table.ratings))


def _check_prompts(table: AnswerTable, rows: np.ndarray) -> None:
    if len({table.answers[int(row)].prompt_id for row in rows}) < 2:
        raise FitError(
            "all answers belong to one prompt; expected at least two, since prompts are what is split "
            "into training and held-out parts. Check the prompt_id column"
        )


def _short(values: np.ndarray) -> str:
    shown = ", ".join(f"{value:g}" for value in values[:8])
    return shown + (", ..." if len(values) > 8 else "")


def check_templates(answers: Sequence[Answer], *, rendered: RenderedText = "error") -> int:
    """How many answers or prompts hold what a chat template has written.

    Args:
        answers: of the data.
        rendered: `error` refuses them; `keep` takes them as plain text.

    Raises:
        DataError: some do, under `error`; the message says whether all do.
        RecipeError: another policy.
    """
    if rendered not in get_args(RenderedText):
        raise RecipeError(
            f"got rendered={rendered!r}. {did_you_mean(rendered, get_args(RenderedText))}"
        )
    found = [
        answer
        for answer in answers
        if any(_WRITTEN.search(m.content) for m in answer.prompt.messages)
        or _WRITTEN.search(answer.response)
    ]
    if not found or rendered == "keep":
        return len(found)
    share = "all" if len(found) == len(answers) else f"{len(found):,} of {len(answers):,}"
    mixed = "" if share == "all" else ", so that two templates would be mixed"
    raise DataError(
        f"{found[0].where or 'the data'}: {share} answers hold text that a chat template has written "
        f"already, such as <|im_start|>{mixed}; expected messages, which are rendered once by the model's "
        "own template. Convert them to messages, or keep them as plain text: --rendered keep"
    )


def rows_of(
    table: AnswerTable,
    supervision: Supervision,
    renderer: ChatRenderer,
    options: RewardOptions,
    context_length: int,
    *,
    rendered: RenderedText = "error",
) -> Rows:
    """Token ids of what is trained on.

    Args:
        table: of answers.
        supervision: of `supervision_of`.
        renderer: of the model.
        options: with `max_length` and the policy for longer ones.
        context_length: of the model.
        rendered: what to do with text that a template has written.

    Raises:
        OverlongError: an answer is too long and the policy is `error`, or its answer alone is.
        RenderError: the template refuses a conversation.
        DataError: templates are mixed; a text holds the pad token; or nothing is left.
    """
    used = sorted(
        {row for c, r, _, _ in supervision.pairs for row in (c, r)}
        | {row for row, _ in supervision.answers}
    )
    n_rendered = check_templates([table.answers[row] for row in used], rendered=rendered)
    texts = {row: renderer.render_finished(table.answers[row]) for row in used}
    _check_pad(texts.values(), renderer)
    fitting = _Fitting(renderer, options, min(options.max_length or context_length, context_length))
    made: list[PairRow] | list[AnswerRow]
    if supervision.pairs:
        made = _pair_rows(table, supervision, texts, fitting)
    else:
        made = _answer_rows(table, supervision, texts, fitting)
    if not made:
        raise DataError(
            f"all {len(supervision.pairs) or len(supervision.answers)} rows are beyond {fitting.limit} "
            "tokens and were skipped; raise max_length, or choose overlong=truncate_left"
        )
    return Rows(
        tuple(made),  # type: ignore[arg-type]
        len(supervision.pairs) or len(supervision.answers),
        fitting.n_truncated,
        fitting.n_skipped,
        n_rendered,
        supervision.levels,
        supervision.objectives,
    )


class _Fitting:
    """The policy for over-long texts, and what it did."""

    def __init__(self, renderer: ChatRenderer, options: RewardOptions, limit: int) -> None:
        self.n_bos = renderer.n_bos
        self.policy = options.overlong
        self.limit = limit
        self.n_truncated = self.n_skipped = 0

    def together(
        self, texts: Sequence[Rendered], wheres: Sequence[str]
    ) -> tuple[Rendered, ...] | None:
        """All texts of a row, each cut by the same tokens of its prompt; None = the row is left out."""
        n_over = max(len(text.ids) for text in texts) - self.limit
        if n_over <= 0:
            return tuple(texts)
        if self.policy == "skip":
            self.n_skipped += 1
            return None
        cut = []
        for text, where in zip(texts, wheres, strict=True):
            # Under `error` the side that is too long is named, not the one beside it.
            room = self.limit if self.policy == "error" else len(text.ids) - n_over
            found = fit_to_context(text, room, self.policy, n_bos=self.n_bos, where=where)  # type: ignore[arg-type]
            assert found is not None
            cut.append(found)
        self.n_truncated += 1
        return tuple(cut)


def _pair_rows(
    table: AnswerTable,
    supervision: Supervision,
    texts: dict[int, Rendered],
    fitting: _Fitting,
) -> list[PairRow]:
    made = []
    for chosen, rejected, margin, weight in supervision.pairs:
        wheres = [table.answers[row].where for row in (chosen, rejected)]
        both = fitting.together([texts[chosen], texts[rejected]], wheres)
        if both is not None:
            made.append(PairRow(*both, margin, weight))
    return made


def _answer_rows(
    table: AnswerTable,
    supervision: Supervision,
    texts: dict[int, Rendered],
    fitting: _Fitting,
) -> list[AnswerRow]:
    made = []
    for row, targets in supervision.answers:
        one = fitting.together([texts[row]], [table.answers[row].where])
        if one is not None:
            made.append(AnswerRow(one[0], targets))
    return made


def _check_pad(texts: Iterable[Rendered], renderer: ChatRenderer) -> None:
    """A pad token in a text would end it there for a classifier, which reads the last other token."""
    pad = renderer.tokenizer.pad_token_id
    for text in texts:
        if pad is not None and text.ids[-1] == pad:
            raise DataError(
                f"a conversation ends with the pad token {renderer.tokenizer.pad_token!r}, which a "
                "classifier does not read; expected another pad token. Set pad_token in the tokenizer"
            )
