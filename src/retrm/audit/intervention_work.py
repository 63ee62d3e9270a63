"""The answers and questions that interventions are measured on, and how much work that is.

Whatever can be refused is refused here, before the model works.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from retrm.audit.effects import within_auroc
from retrm.audit.intervention_plan import InterventionPlan, layer_recipe
from retrm.audit.removal import check_positions, expect_transformers
from retrm.backbone.base import Backbone
from retrm.backbone.batching import TOKENS_PER_BATCH
from retrm.backbone.generate import sample
from retrm.backbone.sampled import Sampled
from retrm.data.grade import GRADERS, is_correct
from retrm.data.split import split_by_prompt
from retrm.errors import DataError
from retrm.features.read import Overlong, count_tokens, render_all
from retrm.records import AnswerTable, Prompt


@dataclass(frozen=True)
class Subject:
    """The answers and questions that everything is measured on.

    Attributes:
        table: the chosen rows that fit the context.
        questions: prompt by prompt_id.
        read_tokens: of one reading.
        n_skipped: chosen answers that were left out as over-long.
    """

    table: AnswerTable
    questions: Mapping[str, Prompt]
    read_tokens: int
    n_skipped: int

    @property
    def has_labels(self) -> bool:
        """Whether any answer can be told right from wrong."""
        return not np.isnan(self.table.labels).all()


def _subject(
    backbone: Backbone,
    table: AnswerTable,
    plan: InterventionPlan,
    seed: int,
    overlong: Overlong,
    tokens_per_batch: int,
) -> Subject:
    rows = _chosen_rows(table, plan, seed)
    fitting = render_all(backbone, [table.answers[row] for row in rows], overlong=overlong)
    if not fitting.rows:
        raise DataError(
            f"got {len(rows)} answers, none of which fits the context of {backbone.name}; shorten "
            "them, or choose another backbone"
        )
    kept = table.take([rows[i] for i in fitting.rows])
    questions = {answer.prompt_id: answer.prompt for answer in reversed(kept.answers)}
    return Subject(
        table=kept,
        questions=dict(sorted(questions.items())),
        read_tokens=count_tokens(
            backbone, fitting.rendered, reads_prompts=True, tokens_per_batch=tokens_per_batch
        ),
        n_skipped=fitting.n_skipped,
    )


def _chosen_rows(table: AnswerTable, plan: InterventionPlan, seed: int) -> list[int]:
    """Rows of at most `max_prompts` prompts, at most `max_answers` of each, in file order."""
    if not len(table):
        raise DataError("got an empty table; expected answers to intervene on")
    n_prompts = len(set(table.prompt_ids.tolist()))
    chosen = np.arange(len(table))
    if n_prompts > plan.max_prompts:
        share = plan.max_prompts / n_prompts
        chosen, _ = split_by_prompt(table.prompt_ids.tolist(), (share, 1 - share), seed)
    rng = np.random.default_rng(seed)
    order = rng.permutation(chosen)
    ids = table.prompt_ids
    taken: dict[str, list[int]] = {}
    for row in order.tolist():
        taken.setdefault(ids[row], []).append(row)
    return sorted(
        row for rows in taken.values() for row in _in_turn(rows, table.labels)[: plan.max_answers]
    )


def _in_turn(rows: Sequence[int], labels: np.ndarray) -> list[int]:
    """Right, wrong and unlabelled ones in turn, so that few answers can still be compared."""
    seen: Counter[str] = Counter()
    turns = []
    for row in rows:
        kind = str(labels[row])
        turns.append(seen[kind])
        seen[kind] += 1
    return [rows[i] for i in np.argsort(turns, kind="stable").tolist()]


@dataclass(frozen=True)
class InterventionEstimate:
    """The work of `measure_interventions`.

    Attributes:
        n_prompts, n_answers: that are used.
        n_skipped: chosen answers that are left out as over-long.
        n_settings: interventions, the unchanged model not counted.
        n_readings: passes over the answers.
        read_tokens: of all readings; a prompt that is shared counts once.
        sampled_tokens: at most, of all new answers.
    """

    n_prompts: int
    n_answers: int
    n_skipped: int
    n_settings: int
    n_readings: int
    read_tokens: int
    sampled_tokens: int

    @property
    def n_tokens(self) -> int:
        """Read and sampled."""
        return self.read_tokens + self.sampled_tokens


def estimate_interventions(
    backbone: Backbone,
    table: AnswerTable,
    *,
    plan: InterventionPlan,
    grader: str | None = None,
    is_scored: bool = False,
    seed: int = 0,
    overlong: Overlong = "error",
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> InterventionEstimate:
    """How many tokens `measure_interventions` with the same arguments would process.

    What that refuses before the model works is refused here too, without a score at hand.

    Args:
        backbone: a transformers model.
        table: answers, with reference answers in `gold` where new ones are asked for.
        plan: where, what and how much.
        grader: rule for new answers.
        is_scored: whether a score will be measured.
        seed: of the chosen rows.
        overlong: as in `read`.
        tokens_per_batch: as in `read`.

    Raises:
        BackboneError, DataError, LabelError, OverlongError, RenderError, RecipeError: as
            `measure_interventions`.
    """
    subject = checked_subject(
        *(backbone, table, plan, seed, overlong, tokens_per_batch), is_scored=is_scored
    )
    check_questions(backbone, subject, plan, grader, seed)
    return work_of(subject, plan, backbone.width)


def checked_subject(
    backbone: Backbone,
    table: AnswerTable,
    plan: InterventionPlan,
    seed: int,
    overlong: Overlong,
    tokens_per_batch: int,
    *,
    is_scored: bool,
) -> Subject:
    """The answers, where something can be removed and what is measured of them is defined."""
    model = expect_transformers(backbone)
    if plan.spare_first:
        check_positions(model)
    for text in plan.layers:
        layer_recipe(text).layer_numbers(backbone.n_layers)
    plan.n_dims(backbone.width)  # refuses more directions than there are
    subject = _subject(backbone, table, plan, seed, overlong, tokens_per_batch)
    if is_scored and subject.has_labels:  # whether a prompt is mixed does not depend on the scores
        within_auroc(subject.table, np.zeros(len(subject.table)))
    return subject


def check_questions(
    backbone: Backbone,
    subject: Subject,
    plan: InterventionPlan,
    grader: str | None,
    seed: int,
) -> None:
    """Refuse new answers that could not be sampled or graded.

    Raises:
        DataError: no grader is named, or a prompt has no reference answer; and what the grader or
            `sample` refuses.
    """
    if plan.n_samples == 0:
        return
    gold, asked = subject.table.gold, subject.questions
    if grader is None:
        raise DataError(
            f"got n_samples={plan.n_samples} without a grader; name one of "
            f"{', '.join(GRADERS)}, or use n_samples=0"
        )
    missing = [prompt_id for prompt_id in asked if prompt_id not in gold]
    if missing:
        raise DataError(
            f"got no reference answer for {len(missing)} of {len(asked)} prompts, such as "
            f"{missing[0]!r}; expected one for each, to grade new answers. Use n_samples=0, or "
            "leave these prompts out"
        )
    for prompt_id in asked:
        is_correct(grader, None, gold[prompt_id])
    new_answers(backbone, subject, plan, seed)  # checks when it is called


def new_answers(
    backbone: Backbone,
    subject: Subject,
    plan: InterventionPlan,
    seed: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> Iterator[Sampled]:
    """Samples as the plan asks for them: checked when this is called, drawn as they are asked for."""
    return sample(
        backbone,
        list(subject.questions.values()),
        n=plan.n_samples,
        temperature=plan.temperature,
        top_p=plan.top_p,
        max_new_tokens=plan.max_new_tokens,
        seed=seed,
        on_progress=on_progress,
    )


def work_of(subject: Subject, plan: InterventionPlan, width: int) -> InterventionEstimate:
    """What measuring takes, on states of this width."""
    n_kinds = 2 + plan.n_draws + plan.n_energy_draws
    n_settings = len(plan.fills) * len(plan.layers) * len(plan.n_dims(width)) * n_kinds
    n_readings = 2 + n_settings  # energies and means; the unchanged model
    n_sampled = (1 + n_settings) * len(subject.questions) * plan.n_samples
    return InterventionEstimate(
        n_prompts=len(subject.questions),
        n_answers=len(subject.table),
        n_skipped=subject.n_skipped,
        n_settings=n_settings,
        n_readings=n_readings,
        read_tokens=n_readings * subject.read_tokens,
        sampled_tokens=n_sampled * plan.max_new_tokens,
    )
