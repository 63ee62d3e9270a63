"""The one gradient loop: any head, any loss, batches of whole prompts, seeded.

Validation prompts are split off by prompt_id; the weights of the best validation epoch are COPIED
and kept (the released ELHSR code keeps a reference and so saves the last epoch). Same data, same
seed, same bytes.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from retrm.data.split import split_by_prompt
from retrm.errors import FitError
from retrm.features.reduce import Features
from retrm.fitting.targets import Targets, loss_value
from retrm.heads.base import Head
from retrm.methods import GradientOptions


@dataclass(frozen=True)
class Epoch:
    """Losses of one epoch; validation is None where no prompts were split off."""

    number: int
    training_loss: float
    validation_loss: float | None


@dataclass(frozen=True)
class GradientFit:
    """How the loop went.

    Attributes:
        epochs: one entry an epoch that was run.
        kept_epoch: whose weights the head now has.
        n_validation_prompts: prompts split off.
    """

    epochs: tuple[Epoch, ...] = field(repr=False)
    kept_epoch: int
    n_validation_prompts: int


def fit_gradient(
    head: Head,
    features: Features,
    targets: Targets,
    loss: str,
    options: GradientOptions,
    *,
    seed: int = 0,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> GradientFit:
    """Fit `head` in place.

    Args:
        head: an empty head; its weights are drawn here from `seed`.
        features: of the training answers.
        targets: of the same rows.
        loss: a name of `LOSSES`.
        options: of the loop.
        seed: of the weights, the split and the order of prompts.
        on_epoch: called after each epoch.

    Raises:
        FitError: the loss is not finite, or no batch holds anything to compare.
    """
    head.check(features)
    generator = torch.Generator().manual_seed(seed)
    head.reset(generator)
    train, held_out = _split(targets, options.validation_fraction, seed)
    shift, scale = _statistics(features, train) if options.standardise else (None, None)
    gather = _Gather(features, (shift, scale))
    optimizer = _optimizer(head, options)
    schedule = _schedule(optimizer, options)
    best: tuple[float, int, dict[str, Tensor]] | None = None
    history: list[Epoch] = []
    for number in range(1, options.epochs + 1):
        training = _run_epoch(head, gather, targets, train, loss, optimizer, options, generator)
        validation = _evaluate(head, gather, targets, held_out, loss)
        history.append(Epoch(number, training, validation))
        schedule.step()
        if on_epoch is not None:
            on_epoch(history[-1])
        if validation is not None and (best is None or validation < best[0]):
            best = (validation, number, copy.deepcopy(head.state_dict()))
        if best is not None and options.patience and number - best[1] >= options.patience:
            break
    kept = len(history)
    if options.keep == "best" and best is not None:
        head.load_state_dict(best[2])
        kept = best[1]
    if shift is not None and scale is not None:
        head.fold_input(shift, scale)
    head.eval()
    return GradientFit(tuple(history), kept, len(torch.unique(targets.groups[held_out])))


class _Gather:
    """Copies the rows of a batch into one float32 buffer that is used again for the next.

    All layers of a few answers are tens of megabytes: fresh memory for every step costs more, in page
    faults alone, than the product that reads it. A batch must be done with before the next is asked
    for.
    """

    def __init__(
        self, features: Features, standardiser: tuple[Tensor | None, Tensor | None]
    ) -> None:
        self.features = features
        self.shift, self.scale = standardiser
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
        if self.shift is not None:
            values.sub_(self.shift).div_(self.scale)
        return values, offsets


def _split(targets: Targets, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
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
    head: Head,
    gather: _Gather,
    targets: Targets,
    rows: Tensor,
    loss: str,
    optimizer: torch.optim.Optimizer,
    options: GradientOptions,
    generator: torch.Generator,
) -> float:
    head.train()
    total, n_batches = 0.0, 0
    for batch in _batches(targets, rows, options.batch_answers, generator):
        scores = head(*gather(batch))
        if not torch.isfinite(scores).all():
            raise FitError(
                f"a score became {scores[~torch.isfinite(scores)][0].item()} while fitting; expected "
                f"finite numbers. Lower lr (now {options.lr:g}), set standardise=true, or run retrm "
                "doctor on the model"
            )
        value = loss_value(loss, scores, targets.take(batch))
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
    head: Head, gather: _Gather, targets: Targets, rows: Tensor, loss: str
) -> float | None:
    if not len(rows):
        return None
    head.eval()
    scores = [head(*gather(chunk)) for chunk in rows.split(64)]
    value = loss_value(loss, torch.cat(scores), targets.take(rows))
    return None if value is None else value.item()


def _statistics(features: Features, rows: Tensor) -> tuple[Tensor, Tensor]:
    count, total, squares = 0, 0.0, 0.0
    for chunk in rows.split(256):
        values = features.take(chunk).values.double()
        count += values.shape[0]
        total = total + values.sum(0)
        squares = squares + values.square().sum(0)
    mean = total / count
    deviation = (squares / count - mean.square()).clamp(min=0).sqrt()
    deviation[deviation < 1e-8 * deviation.max()] = 1.0  # a constant feature carries nothing
    return mean.float(), deviation.float()
