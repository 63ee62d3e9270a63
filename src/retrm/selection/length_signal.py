"""Are right answers shorter than wrong ones? Measure it before enabling shortest_majority.

    gap    mean over mixed prompts of  mean log length of right - mean log length of wrong
    auroc  within-prompt AUROC of minus length, mean over mixed prompts; 0.5 = no signal

A simulation with 16 samples shows gain and loss of similar size (arXiv 2502.12215's rule helps by
about 5 points if right answers are 1.3x shorter and costs as much if they are 1.3x longer), so the
sign matters. Intervals resample prompts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from retrm.data.split import prompt_codes
from retrm.errors import DataError
from retrm.metrics import (
    N_RESAMPLES,
    Interval,
    RatioStatistic,
    clustered_bootstrap,
    within_prompt_auroc_statistic,
)


@dataclass(frozen=True)
class LengthSignal:
    """How length and being right go together inside prompts.

    Attributes:
        log_length_gap: right minus wrong, natural log of tokens; negative = right ones are shorter.
        auroc: of minus length; above 0.5 = right ones are shorter.
        n_prompts: prompts seen.
        n_mixed: prompts with both right and wrong candidates; only these take part.
    """

    log_length_gap: Interval
    auroc: Interval
    n_prompts: int
    n_mixed: int


def length_signal(
    lengths: Sequence[float],
    labels: Sequence[float],
    prompt_ids: Sequence[object],
    *,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> LengthSignal:
    """Within-prompt length difference between right and wrong candidates.

    Args:
        lengths: (n,) response tokens, at least 1.
        labels: (n,) 0 or 1.
        prompt_ids: (n,) the prompt of every row.
        n_resamples: resamples of prompts for the intervals.
        seed: same seed, same intervals.

    Raises:
        DataError: a length below 1 or not finite.
        LabelError: a label is not 0 or 1, or no prompt is mixed.
    """
    tokens = np.asarray(lengths, dtype=np.float64)
    bad = np.flatnonzero(~(np.isfinite(tokens) & (tokens >= 1)))
    if bad.size:
        raise DataError(
            f"got length {tokens[bad[0]]} at position {bad[0]}; expected at least 1 response token. "
            "Leave empty answers out and count them."
        )
    # Checks labels and prompt_ids before anything is computed from them.
    auroc = within_prompt_auroc_statistic(-tokens, labels, prompt_ids)
    gap, n_mixed = _log_length_gap(tokens, np.asarray(labels, dtype=np.float64), prompt_ids)
    return LengthSignal(
        clustered_bootstrap(gap, n_resamples=n_resamples, seed=seed),
        clustered_bootstrap(auroc, n_resamples=n_resamples, seed=seed),
        len(gap.prompts),
        n_mixed,
    )


def _log_length_gap(
    tokens: np.ndarray, labels: np.ndarray, prompt_ids: Sequence[object]
) -> tuple[RatioStatistic, int]:
    codes, prompts = prompt_codes(prompt_ids)
    n_right = np.bincount(codes, labels, minlength=len(prompts))
    n_wrong = np.bincount(codes, minlength=len(prompts)) - n_right
    log_right = np.bincount(codes, labels * np.log(tokens), minlength=len(prompts))
    log_wrong = np.bincount(codes, (1 - labels) * np.log(tokens), minlength=len(prompts))
    mixed = (n_right > 0) & (n_wrong > 0)
    gap = np.zeros(len(prompts))
    gap[mixed] = log_right[mixed] / n_right[mixed] - log_wrong[mixed] / n_wrong[mixed]
    return RatioStatistic(prompts, gap, mixed.astype(np.float64), len(tokens)), int(mixed.sum())
