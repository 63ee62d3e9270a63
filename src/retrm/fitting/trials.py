"""How long a fit takes here: made once on random numbers of the same shape.

Wide fits are tried at `WIDEST_TRIAL` features and grow from there with a power of the width.
"""

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from retrm.features.reduce import Features
from retrm.fitting.convex import RowTargets, choose_lambda
from retrm.fitting.fit import fit_head
from retrm.fitting.mixture import GatePairs, fit_gate
from retrm.fitting.rating_ridge import ridge_operations, sparse_ridge
from retrm.fitting.targets import Targets
from retrm.heads.mixture import MixtureHead
from retrm.methods import Method
from retrm.mixture_options import MixtureOptions
from retrm.records import Answer, AnswerTable, Pair

TRIAL_ROWS = 1000
TRIAL_ANSWERS = 64
TRIAL_OBJECTIVES = 5
TRIAL_STEPS = 5
WIDEST_TRIAL = 512


def grown(trial: Callable[[int], float], width: int, *, power: int = 3) -> float:
    """Seconds of a fit on `width` features, tried on at most `WIDEST_TRIAL`."""
    tried = min(width, WIDEST_TRIAL)
    return trial(tried) * (width / tried) ** power


def warm_duration_of(work: Callable[[], object]) -> float:
    """Seconds of the second time: the first of a kind pays for what is loaded and compiled."""
    work()
    return duration_of(work)


def duration_of(work: Callable[[], object]) -> float:
    """Seconds."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def logistic_s(m: int) -> float:
    """Choosing the penalty of a convex head on `TRIAL_ROWS` answers with m features."""
    generator = torch.Generator().manual_seed(0)
    x, ids = torch.randn(TRIAL_ROWS, m, generator=generator), list(range(TRIAL_ROWS))
    noise = torch.randn(TRIAL_ROWS, generator=generator)
    labels = (x[:, 0] + noise > 0).double().tolist()
    return warm_duration_of(lambda: choose_lambda(x, RowTargets(labels), ids))


def mixture_s(options: MixtureOptions, m: int, n_context: int, n_pairs: int, n_rows: int) -> float:
    """A mixture on m features of an answer and `n_context` of its prompt, with all its steps.

    Args:
        options: of its fit; what is not rated in the data is not known here.
        m: features of an answer.
        n_context: of its prompt.
        n_pairs: to train the gate on.
        n_rows: that are rated.
    """
    generator = torch.Generator().manual_seed(0)
    tried = min(m, TRIAL_ROWS)
    x = torch.randn(TRIAL_ROWS, tried, generator=generator)
    ratings = torch.rand(TRIAL_ROWS, TRIAL_OBJECTIVES, generator=generator).double()
    ridge = warm_duration_of(lambda: sparse_ridge(x, ratings, options.alphas))
    ridge *= ridge_operations(n_rows, m) / ridge_operations(TRIAL_ROWS, tried)
    n = min(options.batch_pairs, n_pairs)
    names = [str(k) for k in range(TRIAL_OBJECTIVES)]
    head = MixtureHead(
        m + n_context,
        objectives=names,
        n_context=n_context,
        gate_width=options.width_of_gate(n_pairs),
        gate_layers=options.gate_layers,
        dropout=options.dropout,
    )
    sides = torch.rand(2, n, TRIAL_OBJECTIVES, generator=generator)
    context = torch.randn(n, n_context, generator=generator)
    pairs = GatePairs(context, *sides, torch.zeros(n), torch.ones(n))
    few = replace(options, steps=TRIAL_STEPS, evaluate_every=TRIAL_STEPS)
    gate = warm_duration_of(lambda: fit_gate(head, pairs, pairs, few))
    return ridge + gate * options.steps / TRIAL_STEPS


def gradient_s(method: Method, m: int, tokens_each: float) -> float:
    """The gradient loop of `method` on `TRIAL_ANSWERS` answers with m features a row.

    Args:
        method: whose head, loss and options are tried; its loss must be named, not `auto`.
        m: features.
        tokens_each: tokens of an answer; pooled features have one row instead.
    """
    each = 1 if method.recipe.is_pooled else max(1, round(tokens_each))
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(TRIAL_ANSWERS * each, m, generator=generator)
    offsets = torch.arange(0, len(values) + 1, each)
    answers = tuple(
        replace(Answer.of(f"q{i // 2}", f"r{i % 2}"), prompt_id=str(i // 2))
        for i in range(TRIAL_ANSWERS)
    )
    pairs = tuple(Pair(i + 1, i) for i in range(0, TRIAL_ANSWERS, 2))
    targets = Targets.of(AnswerTable(answers, np.arange(TRIAL_ANSWERS) % 2.0, pairs))
    features = Features(values, offsets, method.recipe.is_pooled)
    return warm_duration_of(lambda: fit_head(method, features, targets))
