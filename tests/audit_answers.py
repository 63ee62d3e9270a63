"""Right and wrong answers of varied length, and the smallest plan: what whole audits are tried on."""

from dataclasses import replace

import numpy as np
from audit_planted import tiny_plan

from retrm.records import Answer, AnswerTable

# Every pooling and stage, but as few draws, repeats and folds as there can be.
PLAN = tiny_plan(
    size="4",
    widths=("4",),
    poolings=("last", "mean", "max"),
    n_primary_draws=2,
    n_draws=2,
    n_layer_draws=1,
    n_folds=2,
    n_learning_repeats=1,
    n_band_steps=2,
)


def graded(n_prompts=18, n_answers=4):
    rng = np.random.default_rng(0)
    answers = tuple(
        replace(
            Answer.of(f"question number {p}", "answer, " + "ab" * int(rng.integers(1, 9)) + str(k)),
            finished=bool(rng.random() < 0.9),
            key=str(rng.integers(3)),
        )
        for p in range(n_prompts)
        for k in range(n_answers)
    )
    labels = np.array([(p + k + (k == 3)) % 2 for p in range(n_prompts) for k in range(n_answers)])
    return AnswerTable(answers, labels.astype(float), counts={"read": len(answers)})


class Stop(Exception):
    """Raised to kill an audit."""
