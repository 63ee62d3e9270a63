"""How much a removal takes out, and how many random directions take out as much."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retrm.audit.removal import Change, Intervention
from retrm.audit.removed_energy import EnergyProfile, RemovedEnergy
from retrm.backbone.base import Unembedding
from retrm.features.reduce import BatchIndex
from retrm.features.subspace import Subspace, SubspaceFitter

POINT = "residual"


def head(width: int, kind: str = "rms") -> Unembedding:
    return Unembedding(torch.eye(width), None, None, None, kind, 1e-6)


def index_of(*lengths: int) -> BatchIndex:
    n = sum(lengths)
    offsets = torch.tensor([0, *np.cumsum(lengths)])
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return BatchIndex(
        torch.zeros(n, dtype=torch.int64), torch.arange(n), torch.arange(n), offsets, owner
    )


def subspace(rows: torch.Tensor) -> Subspace:
    return Subspace(rows.float().contiguous(), torch.ones(rows.shape[1]), POINT, "any", 1)


def seen(reducer, states: dict[int, torch.Tensor], *lengths: int):
    index = index_of(*lengths)
    for layer, rows in states.items():
        reducer.visit(layer, POINT, rows[None], index, None)
    return reducer.finish(index)


def profiled(states, lengths, bases, kind: str = "rms") -> EnergyProfile:
    width = next(iter(states.values())).shape[1]
    wanted = [(layer, POINT) for layer in states]
    profile = EnergyProfile(head(width, kind), wanted, bases)
    seen(profile, states, *lengths)
    return profile


def removal_of(basis: Subspace, layers, means=None) -> Intervention:
    return Intervention("-", tuple(layers), "random", 0, Change(basis, means or {}))


def random_basis(width: int, seed: int = 0) -> torch.Tensor:
    noise = torch.randn(width, width, generator=torch.Generator().manual_seed(seed)).double()
    return torch.linalg.qr(noise)[0]


def test_the_share_of_each_direction_by_hand():
    # Answer 1: tokens (3, 4) and (0, 1): shares of the first axis 9/25 and 0, mean .18.
    # Answer 2: token (1, 1): 1/2. Mean over answers .34; of the second axis 1 - .34 = .66.
    states = {1: torch.tensor([[3.0, 4.0], [0.0, 1.0], [1.0, 1.0]])}
    profile = profiled(states, (2, 1), {"axes": subspace(torch.eye(2))})

    assert profile.shares("axes", [1]).tolist() == pytest.approx([0.34, 0.66])
    # With (1, 0) put back the first axis loses (3-1)^2/25 = .16, (0-1)^2/1 = 1, 0: mean (.58 + 0)/2.
    means = {(1, POINT): torch.tensor([1.0, 0.0])}
    assert profile.shares("axes", [1], means).tolist() == pytest.approx([0.29, 0.66])


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 7), st.integers(0, 99), st.booleans(), st.sampled_from(["rms", "layer"]))
def test_a_profile_adds_up_to_what_the_removal_takes_out(m, seed, has_means, kind):
    generator = torch.Generator().manual_seed(seed)
    states = {i: torch.randn(6, 8, generator=generator) * torch.arange(1, 9) for i in (1, 2)}
    means = {(i, POINT): torch.randn(8, generator=generator) for i in states}
    whole = subspace(random_basis(8, seed))
    basis = subspace(whole.basis[:m])
    put_back = {i: basis.project(means[i, POINT]) for i in states} if has_means else None

    reducer = RemovedEnergy(head(8, kind), [removal_of(basis, states, put_back)])
    taken = seen(reducer, states, 4, 2).values.mean()
    profile = profiled(states, (4, 2), {"all": whole}, kind)
    shares = profile.shares("all", list(states), means if has_means else None)
    assert shares[:m].sum().item() == pytest.approx(taken.item(), rel=1e-4)


@pytest.mark.parametrize("loud", [2.0, 20.0])
def test_random_directions_of_equal_energy_remove_it_and_are_not_of_equal_number(loud):
    width, m = 96, 5
    spectrum = SubspaceFitter(width, point=POINT).update(random_basis(width))
    tail = spectrum.subspace("reasoning", m)
    noise = torch.randn(400, width, generator=torch.Generator().manual_seed(1))
    states = {1: noise + (loud - 1) * tail.project(noise) @ tail.basis}
    bases = {"tail": tail, "random": spectrum.subspace("random", width, seed=3)}
    profile = profiled(states, (200, 200), bases)

    target = profile.shares("tail", [1]).sum().item()
    found = profile.first("random", [1], target)
    wanted = [removal_of(each, [1]) for each in (tail, found)]
    own, matched = seen(RemovedEnergy(head(width), wanted), states, 200, 200).values.mean(0)
    assert matched.item() == pytest.approx(own.item(), rel=0.2)
    # The tail holds 5 loud^2 of 5 loud^2 + 91: 18 % or 96 %, where 5 random ones hold about 5 %.
    assert own.item() == pytest.approx(5 * loud**2 / (5 * loud**2 + 91), rel=0.2)
    assert found.n_dims > 2 * m
    assert torch.equal(found.basis, bases["random"].basis[: found.n_dims])


@pytest.mark.parametrize(("target", "m"), [(0.0, 1), (0.5, 2), (1.0, 3)])
def test_at_least_one_direction_is_removed_and_never_all(target, m):
    # Four equal shares of .25.
    states = {1: torch.ones(3, 4)}
    profile = profiled(states, (3,), {"axes": subspace(torch.eye(4))})

    assert profile.first("axes", [1], target).n_dims == m
