"""Does the choice of subspace matter once the backbone is fine-tuned? One small experiment.

    pip install 'retrm[train]'
    python finetuned.py [--rollouts FILE] [-o docs/results/finetuned_subspace.json]

The audit keeps the backbone frozen. Training can write anything into any subspace, so there the
question is another one: is a low-rank update (LoRA, arXiv 2106.09685) with a reward read from the
reasoning subspace better than one with a reward read from a random subspace of the same width?

    score = w . (V h - shift) / (scale sqrt(m)) + b        h = post_norm state of the last token

`V` holds the smallest (reasoning), the largest (semantic) or random directions of the ORIGINAL LM
head, or is left out (full); that the smallest ones hold reasoning is an unproven idea. `shift` and
`scale` are mean and deviation of V h over the training answers before training and stay as they are:
every arm begins with coefficients of one size. Three regimes on the same prompts:

    tuned     w, b and the low-rank update learn together
    frozen    w, b alone: same data, same order, same optimiser, same steps
    solved    w, b alone, at the optimum with the penalty chosen on the training prompts

Random arms stand for the mean over their draws, and `draws` counts how many do at least as well as the
reasoning one: the intervals know prompts only. A claim takes 19 draws, too many for the regime `tuned`.

Every arm is kept when it is done, so a killed run goes on. Some 15 minutes on two cores.
"""

import argparse
import importlib.util
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from retrm.backbone.base import Rendered
from retrm.backbone.batching import TOKENS_PER_BATCH, build, plan_batches
from retrm.backbone.load import load_backbone
from retrm.backbone.locate import READERS, WRITERS
from retrm.backbone.states import TransformersBackbone
from retrm.data.load import load_table
from retrm.errors import BackboneError, DataError, MissingExtraError
from retrm.features.batch_pass import PAD_ID
from retrm.features.read import render_all
from retrm.features.subspace import SubspaceSpec, fit_spectrum
from retrm.files import write_json
from retrm.fitting.convex import RowTargets, choose_lambda, fit_linear
from retrm.metrics import (
    AverageStatistic,
    PromptStatistic,
    best_of_k_statistic,
    best_of_n,
    clustered_bootstrap,
    n_at_least_as_good,
    paired_difference,
    point_estimate,
    within_prompt_auroc_statistic,
)
from retrm.records import AnswerTable

HERE = Path(__file__).parent
DIGITS = 4
KINDS = ("reasoning", "semantic", "random", "full")
REGIMES = ("solved", "frozen", "tuned")
METRICS = {"within_auroc": within_prompt_auroc_statistic, "best_of_n": best_of_k_statistic}
Read = Callable[[Sequence[int]], Iterator[tuple[list[int], Tensor]]]


@dataclass(frozen=True)
class Settings:
    """What a run is determined by; arms of other settings are not taken over.

    Attributes:
        model: the backbone.
        rollouts: name of the file of answers.
        train_prompts: prompts to learn on.
        test_prompts: others to measure on.
        epochs: passes over the training prompts.
        prompts_per_step: with all their answers.
        max_steps: stop there, for a trial; 0 = no bound.
        blocks: how many get low-rank updates, counted from the last; 0 = all. The upper half costs
            two thirds of the time of all, for no gradient passes below it.
        rank: of the low-rank updates.
        alpha: their scale times the rank.
        update_rate: learning rate of the updates.
        head_rate: learning rate of w and b.
        weight_decay: of AdamW, for both.
        size: of the subspaces.
        n_draws: random subspaces.
        seed: of the choice of prompts, their order and the updates' first values.
    """

    model: str
    rollouts: str
    train_prompts: int
    test_prompts: int
    epochs: int
    prompts_per_step: int
    max_steps: int
    blocks: int
    rank: int
    alpha: int
    update_rate: float
    head_rate: float
    weight_decay: float
    size: str
    n_draws: int
    seed: int


@dataclass(frozen=True)
class Data:
    """The answers of both parts.

    Attributes:
        table: all answers.
        rendered: their token ids.
        train: rows to learn on, grouped by prompt.
        test: rows to measure on.
    """

    table: AnswerTable
    rendered: tuple[Rendered, ...]
    train: tuple[tuple[int, ...], ...]
    test: tuple[int, ...]

    @property
    def train_rows(self) -> list[int]:
        """Rows to learn on."""
        return [row for rows in self.train for row in rows]

    @property
    def labels(self) -> Tensor:
        """(n,) of all answers, float32."""
        return torch.as_tensor(self.table.labels, dtype=torch.float32)


@dataclass(frozen=True)
class Arm:
    """One regime on one set of features.

    Attributes:
        regime: one of `REGIMES`.
        kind: one of `KINDS`.
        draw: number of the random subspace, else 0.
    """

    regime: str
    kind: str
    draw: int

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.regime}.{self.kind}.{self.draw}"


def arms_of(settings: Settings) -> list[Arm]:
    """All arms, the quick regimes first."""
    draws = {kind: settings.n_draws if kind == "random" else 1 for kind in KINDS}
    return [
        Arm(regime, kind, draw)
        for regime in REGIMES
        for kind in KINDS
        for draw in range(draws[kind])
    ]


# ------------------------------------------------------------------------------------ the head


class SubspaceHead(nn.Module):
    """A linear reward that reads the coefficients of a state on a basis.

    Args:
        basis: (m, D) orthonormal rows; None = the state itself.
        states: (n, D) of the training answers before training, which set shift and scale.
    """

    def __init__(self, basis: Tensor | None, states: Tensor) -> None:
        super().__init__()
        self.basis = basis
        raw = states if basis is None else states @ basis.T
        self.shift = raw.mean(dim=0)
        # With sqrt(m) the norm of the coefficients, and with it a step of Adam, does not grow with m.
        self.scale = raw.std(dim=0).clamp(min=1e-6) * raw.shape[1] ** 0.5
        self.weight = nn.Parameter(torch.zeros(raw.shape[1]))
        self.bias = nn.Parameter(torch.zeros(()))

    def coefficients(self, states: Tensor) -> Tensor:
        """(n, D) states -> (n, m)."""
        raw = states if self.basis is None else states @ self.basis.T
        return (raw - self.shift) / self.scale

    def forward(self, states: Tensor) -> Tensor:
        """(n, D) states -> (n,) scores."""
        return self.coefficients(states) @ self.weight + self.bias

    def direction(self) -> Tensor:
        """(D,) the direction of the state along which the score rises."""
        raw = self.weight.detach() / self.scale
        return raw if self.basis is None else raw @ self.basis


def energy_share(states: Tensor, basis: Tensor) -> float:
    """Mean over rows of |V h|^2 / |h|^2; rows of length 0 count as 0."""
    whole = states.square().sum(dim=-1)
    part = (states @ basis.T).square().sum(dim=-1)
    return float((part / whole.clamp(min=1e-30)).mean())


# ------------------------------------------------------------------------------------ the states


def reader(backbone: TransformersBackbone, rendered: Sequence[Rendered]) -> Read:
    """Reads rows with the model as it stands: post_norm states of their last tokens.

    The gradient reaches the model's weights, which `backbone.forward` does not allow.
    """

    def read(rows: Sequence[int]) -> Iterator[tuple[list[int], Tensor]]:
        mine = [rendered[row] for row in rows]
        plans = plan_batches(
            mine, tokens_per_batch=TOKENS_PER_BATCH, share_prompts=backbone.shares_prompts
        )
        for plan in plans:
            batch = build(plan, mine, PAD_ID, device=backbone.device)
            states = backbone.located.decoder(**backbone.inputs(batch)).last_hidden_state
            last = [states[r, span[-1]] for r, span in zip(batch.rows, batch.spans, strict=True)]
            yield [rows[i] for i in batch.answers], torch.stack(last)

    return read


def read_all(read: Read, rows: Sequence[int], width: int) -> Tensor:
    """(rows, width) states, without a gradient."""
    place = {row: i for i, row in enumerate(rows)}
    out = torch.empty(len(rows), width)
    with torch.no_grad():
        for got, states in read(rows):
            out[[place[row] for row in got]] = states
    return out


def stored(states: Tensor, rows: Sequence[int]) -> Read:
    """Gives the states of `rows` that were read before."""
    place = {row: i for i, row in enumerate(rows)}

    def read(wanted: Sequence[int]) -> Iterator[tuple[list[int], Tensor]]:
        yield list(wanted), states[[place[row] for row in wanted]]

    return read


def with_updates(backbone: TransformersBackbone, settings: Settings) -> list[nn.Parameter]:
    """Put low-rank updates beside the linears of attention and MLP; returns what learns."""
    import peft

    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=0.0,
        target_modules=[*READERS, *WRITERS],
        layers_to_transform=list(range(backbone.n_layers))[-settings.blocks :],
    )
    torch.manual_seed(settings.seed)
    peft.inject_adapter_in_model(config, backbone.model)
    backbone.model.eval()
    return [p for name, p in backbone.model.named_parameters() if "lora_" in name]


# ------------------------------------------------------------------------------------ learning


def steps_of(
    groups: Sequence[Sequence[int]], settings: Settings
) -> Iterator[tuple[int, int, list[int]]]:
    """Number of the step, steps in all, and its rows; the same for every arm."""
    size = settings.prompts_per_step
    per_epoch = -(-len(groups) // size)
    total = per_epoch * settings.epochs
    if settings.max_steps:
        total = min(total, settings.max_steps)
    rng = np.random.default_rng(settings.seed)
    number = 0
    for _ in range(settings.epochs):
        order = rng.permutation(len(groups))
        for start in range(0, len(groups), size):
            if number == total:
                return
            number += 1
            chosen = order[start : start + size]
            yield number, total, [row for group in chosen for row in groups[group]]


def learn(
    head: SubspaceHead,
    updates: Sequence[nn.Parameter],
    read: Read,
    data: Data,
    settings: Settings,
) -> list[float]:
    """Fit head and updates by cross-entropy; returns the loss of every step."""
    groups = [{"params": list(head.parameters()), "lr": settings.head_rate}]
    if updates:
        groups.append({"params": list(updates), "lr": settings.update_rate})
    optimizer = torch.optim.AdamW(groups, weight_decay=settings.weight_decay)
    labels, losses = data.labels, []
    started = time.monotonic()
    for number, total, rows in steps_of(data.train, settings):
        optimizer.zero_grad()
        loss = 0.0
        for got, states in read(rows):
            terms = nn.functional.binary_cross_entropy_with_logits(
                head(states), labels[got], reduction="sum"
            )
            part = terms / len(rows)
            part.backward()
            loss += part.item()
        nn.utils.clip_grad_norm_([*head.parameters(), *updates], 1.0)
        optimizer.step()
        losses.append(loss)
        if updates:
            spent = time.monotonic() - started
            left = spent / number * (total - number)
            print(f"  step {number}/{total}  loss {loss:.3f}  {left:.0f} s left", flush=True)
    return losses


def solve(head: SubspaceHead, states: Tensor, data: Data) -> None:
    """Set w and b to the optimum on the training answers."""
    rows = data.train_rows
    x = head.coefficients(states)
    targets = RowTargets(data.table.labels[rows])
    lam = choose_lambda(x, targets, data.table.prompt_ids[rows].tolist()).lam
    fit = fit_linear(x, targets, lam=lam)
    with torch.no_grad():
        head.weight.copy_(fit.weight)
        head.bias.fill_(fit.bias)


@dataclass(frozen=True)
class Frozen:
    """What the backbone gives before any training.

    Attributes:
        train: (n, D) states of the training rows.
        test: (n, D) states of the test rows.
        bases: by kind, the draws of the basis: (m, D), None for the full state.
    """

    train: Tensor
    test: Tensor
    bases: Mapping[str, Sequence[Tensor | None]]


def run_arm(arm: Arm, frozen: Frozen, data: Data, settings: Settings) -> dict[str, object]:
    """Learn and measure one arm; plain JSON."""
    head = SubspaceHead(frozen.bases[arm.kind][arm.draw], frozen.train)
    started = time.monotonic()
    test, losses = frozen.test, []
    if arm.regime == "solved":
        solve(head, frozen.train, data)
        seconds = time.monotonic() - started
    elif arm.regime == "frozen":
        losses = learn(head, [], stored(frozen.train, data.train_rows), data, settings)
        seconds = time.monotonic() - started
    else:
        backbone = load(settings.model)  # a fresh one: nothing of another arm is left in it
        updates = with_updates(backbone, settings)
        read = reader(backbone, data.rendered)
        started = time.monotonic()
        losses = learn(head, updates, read, data, settings)
        seconds = time.monotonic() - started
        test = read_all(read, data.test, backbone.width)
    with torch.no_grad():
        scores = head(test)
    return {
        **asdict(arm),
        "settings": asdict(settings),
        "scores": scores.tolist(),
        "training_s": round(seconds, 1),
        "first_loss": losses[0] if losses else None,
        "last_loss": losses[-1] if losses else None,
        "shares": shares(head, frozen, test),
    }


def shares(head: SubspaceHead, frozen: Frozen, test: Tensor) -> dict[str, dict[str, float]]:
    """Where the test states, what training added to them, and the reward's direction lie.

    Returns:
        By subspace (`random`: its first draw): shares 0-1 of squared norms; `chance` is m / D.
    """
    moved = test - frozen.test
    out = {}
    for kind in ("reasoning", "semantic", "random"):
        basis = frozen.bases[kind][0]
        assert basis is not None
        out[kind] = {
            "chance": basis.shape[0] / basis.shape[1],
            "before": energy_share(frozen.test, basis),
            "after": energy_share(test, basis),
            "of_the_change": energy_share(moved, basis),
            "of_the_direction": energy_share(head.direction()[None], basis),
        }
    return out


# ----------------------------------------------------------------------------------- the figures


def summarise(done: Mapping[Arm, Mapping[str, object]], data: Data) -> dict[str, object]:
    """Figures with intervals, and paired differences, over the arms that are done."""
    rows = list(data.test)
    labels, ids = data.table.labels[rows], data.table.prompt_ids[rows]
    draws: dict[tuple[str, str], dict[str, list[PromptStatistic]]] = {}
    for arm, result in done.items():
        mine = draws.setdefault((arm.regime, arm.kind), {name: [] for name in METRICS})
        for name, make in METRICS.items():
            mine[name].append(make(result["scores"], labels, ids))
    found = {
        place: {name: AverageStatistic(tuple(each)) for name, each in both.items()}
        for place, both in draws.items()
    }
    chance = best_of_n(np.zeros(len(rows)), labels, ids)
    return {
        "pass_at_1": round(chance.pass_at_1, 4),
        "oracle": round(chance.oracle, 4),
        "figures": {
            f"{regime} {kind}": {n: clustered_bootstrap(s).as_dict(DIGITS) for n, s in both.items()}
            for (regime, kind), both in found.items()
        },
        "differences": {
            name: {n: paired_difference(found[a][n], found[b][n]).as_dict(DIGITS) for n in METRICS}
            for name, (a, b) in contrasts(list(found)).items()
        },
        "draws": {
            regime: draw_counts(found[regime, "reasoning"], draws[regime, "random"])
            for regime in REGIMES
            if {(regime, "reasoning"), (regime, "random")} <= set(found)
        },
        "arms": {
            arm.name: {k: r[k] for k in ("training_s", "first_loss", "last_loss", "shares")}
            for arm, r in done.items()
        },
    }


def draw_counts(
    ours: Mapping[str, PromptStatistic], draws: Mapping[str, Sequence[PromptStatistic]]
) -> dict[str, object]:
    """How many random draws do at least as well, in each metric."""
    counts = {
        name: n_at_least_as_good(point_estimate(ours[name]), [*map(point_estimate, each)])
        for name, each in draws.items()
    }
    return {"n": len(next(iter(draws.values()))), "at_least_as_good": counts}


def contrasts(
    found: Sequence[tuple[str, str]],
) -> dict[str, tuple[tuple[str, str], tuple[str, str]]]:
    """The comparisons among what is there: reasoning to the rest, tuned to the other regimes."""
    wanted = {
        f"{regime}: reasoning - {other}": ((regime, "reasoning"), (regime, other))
        for regime in REGIMES
        for other in ("random", "semantic", "full")
    }
    for other in ("frozen", "solved"):
        for kind in KINDS:
            wanted[f"{kind}: tuned - {other}"] = (("tuned", kind), (other, kind))
    return {name: both for name, both in wanted.items() if set(both) <= set(found)}


def print_figures(result: Mapping[str, object]) -> None:
    """The figures and differences, a line each."""
    print(f"pass@1 {result['pass_at_1']:.3f}, oracle {result['oracle']:.3f}")
    for part in ("figures", "differences"):
        for name, metrics in result[part].items():
            cells = [
                f"{metric} {v['value']:+.3f} [{v['low']:+.3f}, {v['high']:+.3f}]"
                for metric, v in metrics.items()
            ]
            print(f"{name:32} " + "  ".join(cells))
    for regime, found in result["draws"].items():
        counts = ", ".join(f"{metric} {n}" for metric, n in found["at_least_as_good"].items())
        print(
            f"{regime}: of {found['n']} random subspaces as good as reasoning or better: {counts}"
        )


# ----------------------------------------------------------------------------------------- running


def load(name: str) -> TransformersBackbone:
    """The backbone by name.

    Raises:
        BackboneError: it is none that can learn.
    """
    backbone = load_backbone(name)
    if not isinstance(backbone, TransformersBackbone):
        raise BackboneError(
            f"got the backbone {name!r}, which has no weights to update; expected a transformers model"
        )
    return backbone


def choose(table: AnswerTable, backbone: TransformersBackbone, settings: Settings) -> Data:
    """Prompts of both parts, drawn at random.

    Raises:
        DataError: fewer prompts than asked for.
    """
    groups = table.candidate_sets()
    n_train, n_test = settings.train_prompts, settings.test_prompts
    if len(groups) < n_train + n_test:
        raise DataError(
            f"got {len(groups)} prompts; expected at least {n_train + n_test}. Ask for fewer"
        )
    order = np.random.default_rng(settings.seed).permutation(len(groups))
    train = tuple(groups[i].rows for i in order[:n_train])
    test = tuple(row for i in order[n_train : n_train + n_test] for row in groups[i].rows)
    return Data(table, render_all(backbone, table.answers).rendered, train, test)


def freeze(backbone: TransformersBackbone, data: Data, settings: Settings) -> Frozen:
    """States and bases of the backbone as it is."""
    spectrum = fit_spectrum(backbone.unembedding, "post_norm")
    m = SubspaceSpec.parse(f"reasoning:{settings.size}").n_dims(backbone.width)
    draws = range(settings.n_draws)
    read = reader(backbone, data.rendered)
    return Frozen(
        train=read_all(read, data.train_rows, backbone.width),
        test=read_all(read, data.test, backbone.width),
        bases={
            "full": [None],
            "reasoning": [spectrum.subspace("reasoning", m).basis],
            "semantic": [spectrum.subspace("semantic", m).basis],
            "random": [spectrum.subspace("random", m, seed=draw).basis for draw in draws],
        },
    )


def kept(folder: Path, arm: Arm, settings: Settings) -> dict[str, object] | None:
    """What an earlier run with the same settings found; None without one."""
    path = folder / f"{arm.name}.json"
    if not path.exists():
        return None
    found = json.loads(path.read_text("utf-8"))
    return found if found["settings"] == asdict(settings) else None


def main() -> None:
    """Every arm, then the figures.

    Raises:
        MissingExtraError: peft is not installed; before anything is read.
    """
    args = parse()
    if importlib.util.find_spec("peft") is None:
        raise MissingExtraError(
            "fine-tuning needs the package `peft`, which is not installed. Run: pip install "
            "'retrm[train]'"
        )
    settings = Settings(
        rollouts=args.rollouts.name,
        **{k: getattr(args, k) for k in Settings.__annotations__ if k != "rollouts"},
    )
    started = time.monotonic()
    backbone = load(settings.model)
    data = choose(load_table(args.rollouts), backbone, settings)
    print(f"reading {len(data.train_rows) + len(data.test):,} answers", flush=True)
    frozen = freeze(backbone, data, settings)
    print(f"read in {time.monotonic() - started:.0f} s", flush=True)
    done: dict[Arm, dict[str, object]] = {}
    for arm in arms_of(settings):
        result = kept(args.work, arm, settings)
        if result is None:
            print(f"{arm.name}", flush=True)
            result = run_arm(arm, frozen, data, settings)
            write_json(args.work / f"{arm.name}.json", result)
        done[arm] = result
        write_json(args.output, {**facts(settings, data), **summarise(done, data)})
    print_figures(summarise(done, data))
    print(f"{args.output}: done in {time.monotonic() - started:.0f} s")


def facts(settings: Settings, data: Data) -> dict[str, object]:
    """What was done, with what."""
    return {
        "what": "rewards read from a subspace, backbone frozen and fine-tuned (LoRA)",
        "command": " ".join(["python recipes/audit/finetuned.py", *sys.argv[1:]]),
        "settings": asdict(settings),
        "n_train_answers": len(data.train_rows),
        "n_test_answers": len(data.test),
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "threads": torch.get_num_threads(),
        },
        "versions": {n: version(n) for n in ("retrm", "torch", "transformers", "peft")},
    }


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--rollouts", type=Path, default=HERE.parent / "demo" / "rollouts.jsonl")
    add("--model", default="smollm2-135m")
    add("--train-prompts", type=int, default=100)
    add("--test-prompts", type=int, default=100)
    add("--epochs", type=int, default=1)
    add("--prompts-per-step", type=int, default=2)
    add("--max-steps", type=int, default=0, help="for a trial; 0 = no bound")
    add("--blocks", type=int, default=15, help="that get updates, from the last; 0 = all")
    add("--rank", type=int, default=8)
    add("--alpha", type=int, default=16)
    add("--update-rate", type=float, default=1e-3)
    add("--head-rate", type=float, default=0.02)
    add("--weight-decay", type=float, default=0.01)
    add("--size", default="5%")
    add("--n-draws", type=int, default=2)
    add("--seed", type=int, default=0)
    add("--work", type=Path, default=Path("runs/finetuned_subspace"), help="arms that are done")
    add(
        "-o",
        "--output",
        type=Path,
        default=HERE.parents[1] / "docs/results/finetuned_subspace.json",
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
