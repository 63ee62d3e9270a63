"""The one gradient loop: any head, any loss, batches of whole prompts, seeded.

Validation prompts are split off by prompt_id; the weights of the best validation epoch are COPIED
and kept (the released ELHSR code keeps a reference and so saves the last epoch). Same data, same
seed, same bytes.

A gated head can start at the best head without a gate instead of at random weights (`mean_head`);
that start counts as epoch 0 and is kept where no epoch betters it.

What a step costs, all layers of SmolLM2 at 450 tokens, one core: 2.5 ms to convert bfloat16, 3.1 ms
forward, 2.5 ms backward, and little else. Standardised features cost nothing more where the head can
take the standardisation into its weights.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from retrm.data.split import split_by_prompt
from retrm.errors import FitError, RecipeError
from retrm.features.reduce import Features
from retrm.fitting.mean_head import AnswerMoments, check_mean, fit_mean
from retrm.fitting.targets import Targets, loss_value
from retrm.heads.base import Head
from retrm.heads.gated import GatedHead
from retrm.methods import GradientOptions
from retrm.pair_options import PLAIN, PairOptions

TokenScale = tuple[Tensor, Tensor]  # what is subtracted, and what is then divided by


@dataclass(frozen=True)
class Epoch:
    """Losses of one epoch; validation is None where no prompts were split off.

    Number 0 is a start that was fitted; its training loss is that of all training answers together.
    """

    number: int
    training_loss: float
    validation_loss: float | None


@dataclass(frozen=True)
class GradientFit:
    """How the loop went.

    Attributes:
        epochs: one entry an epoch that was run, and before them one for a start that was fitted.
        kept_epoch: whose weights the head now has; 0 = those of that start.
        n_validation_prompts: prompts split off.
        start_penalty: of the fitted start, chosen inside the training prompts, as a share of the
            variance of all features together; None for a random start.
    """

    epochs: tuple[Epoch, ...] = field(repr=False)
    kept_epoch: int
    n_validation_prompts: int
    start_penalty: float | None = None


def check_start(head: Head, options: GradientOptions) -> None:
    """Refuse a start that the head does not have.

    Raises:
        RecipeError: `mean_head` for another head than the gated one.
    """
    if options.start == "mean_head" and not isinstance(head, GatedHead):
        raise RecipeError(
            f"gradient option start is 'mean_head' and the head {head.name!r}; expected the gated head, "
            "whose score is linear in the mean features where its gates are equal. Use start=random"
        )


def check_start_targets(
    targets: Targets, loss: str, options: GradientOptions, *, seed: int = 0
) -> None:
    """Refuse answers that leave too little for the start; needs no features.

    Args:
        targets: of the training answers, validation prompts among them.
        loss: a name of `LOSSES`.
        options: of the loop.
        seed: of the loop; another one splits off other validation prompts.

    Raises:
        FitError: as `check_mean`, of the prompts that validation leaves.
    """
    if options.start == "mean_head":
        train, _ = split_rows(targets, options.validation_fraction, seed)
        check_mean(targets.take(train), loss)


def fit_gradient(
    head: Head,
    features: Features,
    targets: Targets,
    loss: str,
    options: GradientOptions,
    *,
    loss_options: PairOptions = PLAIN,
    seed: int = 0,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> GradientFit:
    """Fit `head` in place.

    Args:
        head: an empty head; its weights are drawn here from `seed`, or start at the mean head.
        features: of the training answers.
        targets: of the same rows.
        loss: a name of `LOSSES`.
        options: of the loop.
        loss_options: of the loss of pairs; a start that is fitted does without them.
        seed: of the weights, the split and the order of prompts.
        on_epoch: called after each epoch, and with number 0 after a start that was fitted.

    Raises:
        FitError: the loss is not finite, no batch holds anything to compare, or the start cannot be
            fitted (fewer than three training prompts with anything to learn from).
        RecipeError: a start that the head does not have.
    """
    head.check(features)
    check_start(head, options)
    check_start_targets(targets, loss, options, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    head.reset(generator)
    train, held_out = split_rows(targets, options.validation_fraction, seed)
    account = _Account(head, options, on_epoch)
    moments, standardiser, penalty = None, None, None
    if options.standardise or options.start == "mean_head":
        moments = AnswerMoments.of(features, train, scatter=options.standardise)
        standardiser = moments.token_statistics() if options.standardise else None
    scored = _Scores(head, features, standardiser)
    if options.start == "mean_head" and moments is not None:
        judged = targets.take(train)
        penalty, training = _start_at_mean(head, moments.means, standardiser, judged, loss, seed)
        validation = _evaluate(scored, targets, held_out, loss, loss_options, options.batch_answers)
        account.add(training, validation)
    optimizer = _optimizer(head, options)
    schedule = _schedule(optimizer, options)
    for _ in range(options.epochs):
        training = _run_epoch(
            *(scored, targets, train, loss), loss_options, optimizer, options, generator
        )
        validation = _evaluate(scored, targets, held_out, loss, loss_options, options.batch_answers)
        schedule.step()
        account.add(training, validation)
        if account.is_out_of_patience:
            break
    kept = account.restore()
    if standardiser is not None:
        head.fold_input(*standardiser)
    head.eval()
    n_held_out = len(torch.unique(targets.groups[held_out]))
    return GradientFit(tuple(account.epochs), kept, n_held_out, penalty)


class _Account:
    """The losses so far, and a copy of the weights of the best validation epoch."""

    def __init__(
        self, head: Head, options: GradientOptions, on_epoch: Callable[[Epoch], None] | None
    ) -> None:
        self.epochs: list[Epoch] = []
        self._head, self._options, self._on_epoch = head, options, on_epoch
        self._best: tuple[float, int, dict[str, Tensor]] | None = None

    def add(self, training: float, validation: float | None) -> None:
        """One more epoch; the first is number 0 where the start was fitted."""
        number = len(self.epochs) + (self._options.start == "random")
        self.epochs.append(Epoch(number, training, validation))
        if self._on_epoch is not None:
            self._on_epoch(self.epochs[-1])
        if validation is not None and (self._best is None or validation < self._best[0]):
            self._best = (validation, number, copy.deepcopy(self._head.state_dict()))

    @property
    def is_out_of_patience(self) -> bool:
        """Whether the best epoch is too long ago."""
        patience = self._options.patience
        if self._best is None or patience is None:
            return False
        return self.epochs[-1].number - self._best[1] >= patience

    def restore(self) -> int:
        """Give the head the weights to keep; returns the number of their epoch."""
        if self._options.keep == "best" and self._best is not None:
            self._head.load_state_dict(self._best[2])
            return self._best[1]
        return self.epochs[-1].number


def _start_at_mean(
    head: Head,
    means: Tensor,
    standardiser: TokenScale | None,
    targets: Targets,
    loss: str,
    seed: int,
) -> tuple[float, float]:
    """The convex head on mean features as `head`, in the coordinates of the loop.

    Returns:
        Its penalty and its training loss.
    """
    assert isinstance(head, GatedHead)
    try:
        start = fit_mean(means, targets, loss, standardise=standardiser is not None, seed=seed)
    except FitError as error:
        raise FitError(f"start=mean_head: {error} Or use start=random") from error
    weight, bias = start.weight, start.bias
    if standardiser is not None:
        shift, scale = standardiser
        weight, bias = weight * scale, bias + float(weight.double() @ shift.double())
    head.set_equal_gates(weight, bias)
    # With equal gates the means know the scores: no second pass over the tokens.
    training = loss_value(loss, means @ start.weight + start.bias, targets)
    assert training is not None, "there was something to fit"
    return start.penalty, training.item()


class _Scores:
    """Scores of some answers by the head as it is, from raw or standardised features."""

    def __init__(self, head: Head, features: Features, standardiser: TokenScale | None) -> None:
        self.head = head
        self._gather = _Gather(features)
        self._standardiser = standardiser

    def __call__(self, rows: Tensor) -> Tensor:
        """(len(rows),) in their order."""
        values, offsets = self._gather(rows)
        if self._standardiser is None:
            return self.head(values, offsets)
        folded = self.head.folded(*self._standardiser)
        if folded is not None:
            return torch.func.functional_call(self.head, folded, (values, offsets))
        values.sub_(self._standardiser[0]).div_(self._standardiser[1])
        return self.head(values, offsets)


class _Gather:
    """Copies the rows of a batch into one float32 buffer that is used again for the next.

    All layers of a few answers are tens of megabytes: fresh memory for every step costs more, in page
    faults alone, than the product that reads it. A batch must be done with before the next is asked
    for.
    """

    def __init__(self, features: Features) -> None:
        self.features = features
        self._room = torch.empty(0, features.n_features)

    def __call__(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(values, offsets) of the answers `rows`, in that order."""
        starts, stops = self.features.offsets[rows], self.features.offsets[rows + 1]
        offsets = torch.cat([stops.new_zeros(1), (stops - starts).cumsum(0)])
        total = int(offsets[-1])
        if total > len(self._room):
            self._room = torch.empty(total + total // 4, self.features.n_features)
        values = self._room[:total]
        for first, last, at in zip(
            starts.tolist(), stops.tolist(), offsets[:-1].tolist(), strict=True
        ):
            values[at : at + last - first].copy_(self.features.values[first:last])
        return values, offsets


def split_rows(targets: Targets, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """(training rows, validation rows): whole prompts; no validation with fewer than three prompts."""
    rows = torch.arange(len(targets.labels))
    if fraction <= 0 or targets.n_prompts < 3:
        return rows, rows[:0]
    names = [str(group) for group in targets.groups.tolist()]
    parts = split_by_prompt(names, (1 - fraction, fraction), seed=seed)
    return torch.as_tensor(parts[0]), torch.as_tensor(parts[1])


def _optimizer(head: Head, options: GradientOptions) -> torch.optim.Optimizer:
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[options.optimizer]
    return kind(head.parameters(), lr=options.lr, weight_decay=options.weight_decay)


def _schedule(
    optimizer: torch.optim.Optimizer, options: GradientOptions
) -> torch.optim.lr_scheduler.LRScheduler:
    if options.schedule == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.epochs)
    return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)


def _batches(targets: Targets, rows: Tensor, size: int, generator: torch.Generator) -> Iterator:
    # Whole prompts only: every loss that compares answers to one prompt must see all of them.
    groups = targets.groups[rows]
    prompts = torch.unique(groups)
    prompts = prompts[torch.randperm(len(prompts), generator=generator)]
    order = torch.argsort(groups, stable=True)
    members = dict(
        zip(
            torch.unique(groups).tolist(),
            torch.split(rows[order], torch.bincount(groups)[torch.unique(groups)].tolist()),
            strict=True,
        )
    )
    batch: list[Tensor] = []
    held = 0
    for prompt in prompts.tolist():
        batch.append(members[prompt])
        held += len(members[prompt])
        if held >= size:
            yield torch.cat(batch)
            batch, held = [], 0
    if batch:
        yield torch.cat(batch)


def _run_epoch(
    scored: _Scores,
    targets: Targets,
    rows: Tensor,
    loss: str,
    loss_options: PairOptions,
    optimizer: torch.optim.Optimizer,
    options: GradientOptions,
    generator: torch.Generator,
) -> float:
    scored.head.train()
    total, n_batches = 0.0, 0
    for batch in _batches(targets, rows, options.batch_answers, generator):
        scores = scored(batch)
        if not torch.isfinite(scores).all():
            raise FitError(
                f"a score became {scores[~torch.isfinite(scores)][0].item()} while fitting; expected "
                f"finite numbers. Lower lr (now {options.lr:g}), set standardise=true, or run retrm "
                "doctor on the model"
            )
        value = loss_value(loss, scores, targets.take(batch), loss_options)
        if value is None:
            continue
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        total += value.item()
        n_batches += 1
    if n_batches == 0:
        raise FitError(f"no batch of the training prompts holds anything the {loss} loss compares")
    return total / n_batches


@torch.no_grad()
def _evaluate(
    scored: _Scores,
    targets: Targets,
    rows: Tensor,
    loss: str,
    loss_options: PairOptions,
    batch_answers: int,
) -> float | None:
    # No more answers at once than a step has: the buffer of the gather grows to the most it is asked
    # for, and more than the cache holds is slower.
    if not len(rows):
        return None
    scored.head.eval()
    scores = [scored(chunk) for chunk in rows.split(batch_answers)]
    value = loss_value(loss, torch.cat(scores), targets.take(rows), loss_options)
    return None if value is None else value.item()
