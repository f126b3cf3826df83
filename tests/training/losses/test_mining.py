"""The miners against plain loops; P x K batches; mining across two processes."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from collections import Counter
from itertools import permutations
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from accelerate import Accelerator  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.training.conftest import TWO_PROCESSES
from training.core.errors import DataError
from training.datasets.batches import IdentityBatches, positive_labels
from training.datasets.images import Indices
from training.losses.metric_learning import pairwise_distances
from training.losses.mining import (
    active_fraction,
    all_pairs,
    batch_all,
    batch_hard,
    gather_embeddings,
    hard_pairs,
    random_pairs,
    random_triplets,
    semi_hard,
)
from training.losses.recipe_losses import triplet_loss
from training.recipe.embed_config import LossSection

ROOT = Path(__file__).parents[3]


@st.composite
def batches(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Symmetric distances [N, N] without ties and labels [N], N from 0, one to four labels."""
    n = draw(st.integers(0, 10))
    labels = draw(st.lists(st.integers(0, draw(st.integers(0, 3))), min_size=n, max_size=n))
    vectors = np.random.default_rng(draw(st.integers(0, 2**32))).normal(size=(n, 3))
    return pairwise_distances(torch.from_numpy(vectors)), torch.tensor(labels, dtype=torch.long)


def as_set(triplets: tuple[Tensor, ...]) -> set[tuple[int, ...]]:
    rows = [tuple(row) for row in torch.stack(list(triplets)).T.tolist()]
    assert len(set(rows)) == len(rows), "a triplet twice"
    assert all(part.dtype == torch.int64 for part in triplets)
    return set(rows)


def loop(labels: Tensor) -> set[tuple[int, ...]]:
    """Every triplet."""
    numbers = labels.tolist()
    return {
        (a, p, n)
        for a, p, n in permutations(range(len(numbers)), 3)
        if numbers[a] == numbers[p] and numbers[a] != numbers[n]
    }


@settings(deadline=None, max_examples=60)
@given(batch=batches(), margin=st.sampled_from([0.1, 0.5, 5.0]))
def test_triplet_miners_agree_with_loops(batch: tuple[Tensor, Tensor], margin: float) -> None:
    distances, labels = batch
    d, everything = distances.tolist(), loop(labels)
    assert as_set(batch_all(distances, labels)) == everything
    assert as_set(batch_hard(distances, labels)) == {
        max(
            (t for t in everything if t[0] == anchor),
            key=lambda t: (d[t[0]][t[1]], -d[t[0]][t[2]]),
        )
        for anchor in {t[0] for t in everything}
    }
    fitting = [t for t in everything if 0 < d[t[0]][t[2]] - d[t[0]][t[1]] < margin]
    assert as_set(semi_hard(distances, labels, margin)) == {
        min((t for t in fitting if t[:2] == pair), key=lambda t: d[t[0]][t[2]]) for pair in {t[:2] for t in fitting}
    }
    drawn = as_set(random_triplets(distances, labels, torch.Generator().manual_seed(0)))
    assert drawn <= everything
    assert sorted(t[:2] for t in drawn) == sorted({t[:2] for t in everything})


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("mining", ["batch-hard", "semi-hard"])
def test_triplet_loss_agrees_with_a_loop(mining: Literal["batch-hard", "semi-hard"], squared: bool) -> None:
    embeddings = torch.randn(12, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels, margin, power = torch.arange(12) % 3, 0.8, 1 + squared
    parts = []
    for anchor, d in enumerate(torch.cdist(embeddings, embeddings).tolist()):
        near = [d[p] for p in range(12) if p != anchor and p % 3 == anchor % 3]
        far = [d[n] for n in range(12) if n % 3 != anchor % 3]
        pairs = [(max(near), min(far))]
        if mining == "semi-hard":
            fitting = [(p, [n for n in far if p < n < p + margin]) for p in near]
            pairs = [(p, min(negatives)) for p, negatives in fitting if negatives]
        parts += [max(0.0, margin + p**power - n**power) for p, n in pairs]
    loss = LossSection(kind="triplet", mining=mining, margin=margin, squared=squared, active_only=True)
    value, active = triplet_loss(loss, embeddings, labels, torch.Generator())
    positive = [part for part in parts if part > 0]
    assert float(value) == pytest.approx(sum(positive) / len(positive))
    assert float(active) == pytest.approx(len(positive) / len(parts))


@settings(deadline=None, max_examples=60)
@given(batch=batches())
def test_pair_miners_agree_with_loops(batch: tuple[Tensor, Tensor]) -> None:
    distances, labels = batch
    numbers, d = labels.tolist(), distances.tolist()
    couples = [(i, j) for j in range(len(numbers)) for i in range(j)]
    same = {(i, j) for i, j in couples if numbers[i] == numbers[j]}
    other = set(couples) - same
    pairs = all_pairs(distances, labels)
    assert (as_set(tuple(pairs.positive)), as_set(tuple(pairs.negative))) == (same, other)
    count = min(len(same), len(other))
    drawn = random_pairs(distances, labels, torch.Generator().manual_seed(0))
    assert as_set(tuple(drawn.positive)) == same
    assert as_set(tuple(drawn.negative)) <= other
    assert drawn.negative.shape == (2, count)
    hard = hard_pairs(distances, labels)
    assert as_set(tuple(hard.positive)) == same
    assert as_set(tuple(hard.negative)) == set(sorted(other, key=lambda pair: d[pair[0]][pair[1]])[:count])


def test_random_negatives_are_equally_likely_and_repeat_with_the_seed() -> None:
    labels = torch.tensor([0, 0, 1, 2, 2, 1])
    distances = torch.rand(6, 6)
    generator = torch.Generator().manual_seed(0)
    counts: Counter[int] = Counter()
    for _ in range(2000):
        triplets = random_triplets(distances, labels, generator)
        counts[int(triplets.negative[triplets.anchor == 0])] += 1
    assert counts.keys() == {2, 3, 4, 5}
    assert all(430 < count < 570 for count in counts.values())  # 500 +- 3.6 standard deviations
    first, second = (random_triplets(distances, labels, torch.Generator().manual_seed(7)) for _ in range(2))
    assert as_set(first) == as_set(second)


def test_equal_vectors_have_no_semi_hard_triplets() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    distances = torch.zeros(4, 4)
    assert as_set(batch_hard(distances, labels)) == {(0, 1, 2), (1, 0, 2), (2, 3, 0), (3, 2, 0)}
    assert len(semi_hard(distances, labels, 0.2).anchor) == 0
    assert active_fraction(*batch_all(distances, labels).of(distances), 0.2) == 1
    assert active_fraction(*batch_all(distances, labels).of(distances), 0.0) == 0
    assert active_fraction(torch.zeros(0), torch.zeros(0), 0.2) == 0


def test_nan_does_not_make_invalid_triplets() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    distances = torch.full((4, 4), torch.nan)
    assert as_set(batch_hard(distances, labels)) <= loop(labels)


# P x K batches


@st.composite
def collections(draw: st.DrawFn) -> tuple[Indices, int, int]:
    """Labels of 1 to 12 identities with 1 to 20 rows each, shuffled, not from 0; P, at most as many; K."""
    counts = draw(st.lists(st.integers(1, 20), min_size=1, max_size=12))
    names = np.arange(len(counts)) * 7 + 3
    labels = np.repeat(names, counts)
    np.random.default_rng(draw(st.integers(0, 1000))).shuffle(labels)
    return labels, draw(st.integers(1, len(counts))), draw(st.integers(1, 5))


@settings(deadline=None, max_examples=150)
@given(collection=collections(), seed=st.integers(0, 100))
def test_batches_have_p_identities_and_each_row_once(
    collection: tuple[Indices, int, int],
    seed: int,
) -> None:
    labels, p, k = collection
    sizes = Counter(labels.tolist())
    batches = IdentityBatches(labels, p, k, seed)
    assert batches.per_epoch >= 1
    seen: Counter[int] = Counter()
    groups: Counter[int] = Counter()
    for index in range(batches.per_epoch):
        rows = batches(1, index)
        assert rows.dtype == np.int64
        assert rows.shape == (p * k,)
        by_identity = labels[rows].reshape(p, k)
        assert (by_identity == by_identity[:, :1]).all()
        assert len(set(by_identity[:, 0].tolist())) == p
        seen.update(rows.tolist())
        groups.update(by_identity[:, 0].tolist())
    for row, times in seen.items():
        size = sizes[labels[row]]
        assert times == 1 if size >= k else times in {k // size, -(-k // size)}, "few rows repeat in turn"
    # Nothing but the last, incomplete batch is left out, and what an identity has more than there are batches.
    places = {name: min(max(size // k, 1), batches.per_epoch) for name, size in sizes.items()}
    assert all(groups[name] <= places[name] for name in sizes)
    assert sum(groups.values()) == p * batches.per_epoch
    more = batches.per_epoch + 1
    assert sum(min(max(size // k, 1), more) for size in sizes.values()) < p * more, "one more batch would have fitted"


def test_epochs_depend_on_the_seed_and_are_shared_by_processes() -> None:
    labels = np.random.default_rng(0).integers(0, 40, 400)
    batches = IdentityBatches(labels, 8, 4, 5)
    first = [batches(0, index) for index in range(batches.per_epoch)]
    other = [batches(1, index) for index in range(batches.per_epoch)]
    again = IdentityBatches(labels, 8, 4, 5)
    assert all(np.array_equal(again(0, index), rows) for index, rows in reversed(list(enumerate(first))))
    assert not np.array_equal(first, other)
    assert not np.array_equal(first, [IdentityBatches(labels, 8, 4, 6)(0, index) for index in range(len(first))])
    shares = [IdentityBatches(labels, 8, 4, 5, process=process, processes=4) for process in range(4)]
    assert all(share.per_epoch == batches.per_epoch for share in shares)
    for index, rows in enumerate(first):
        assert np.array_equal(np.concatenate([share(0, index) for share in shares]), rows)


def test_large_identities_are_combined_with_many_others() -> None:
    """One with a third of all groups, and twenty of three groups each: every pair of them meets in a few epochs."""
    labels = np.concatenate([np.zeros(60, np.int64), np.repeat(np.arange(1, 21), 6)])
    batches = IdentityBatches(labels, 4, 2, 0)
    met: set[tuple[int, int]] = set()
    for epoch in range(40):
        for index in range(batches.per_epoch):
            names = sorted(set(labels[batches(epoch, index)].tolist()))
            met.update((a, b) for a in names for b in names if a < b)
    assert len(met) == 21 * 20 / 2


def test_augmentations_of_one_photo_as_positives() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2])
    assert positive_labels(labels, "identity") is labels
    own = positive_labels(labels, "augment")
    assert own.tolist() == [0, 1, 2, 3, 4, 5]
    batches = IdentityBatches(own, 3, 2, 0)
    rows = np.concatenate([batches(0, index) for index in range(batches.per_epoch)])
    assert (rows[::2] == rows[1::2]).all()
    assert sorted(rows[::2]) == list(range(6))


@pytest.mark.parametrize(
    ("arguments", "processes", "message"),
    [
        ((4, 2), 1, "4 identities from 3"),
        ((3, 2), 2, "evenly over 2"),
        ((0, 2), 1, "0 identities"),
        ((2, 0), 1, "of 0"),
    ],
)
def test_impossible_batches_are_refused(arguments: tuple[int, int], processes: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        IdentityBatches(np.array([0, 0, 1, 1, 2, 2]), *arguments, 0, processes=processes)


# Across processes


def test_single_process_gathers_its_own_rows() -> None:
    embeddings, labels = torch.randn(3, 2, requires_grad=True), torch.arange(3)
    gathered = gather_embeddings(Accelerator(cpu=True), embeddings, labels)
    assert gathered[0] is embeddings
    assert gathered[1] is labels


SCRIPT = """
import sys
import torch
from accelerate import Accelerator
from torch import nn
from training.losses.metric_learning import pairwise_distances, triplet
from training.losses.mining import batch_hard, gather_embeddings

accelerator = Accelerator(cpu=True)
torch.set_num_threads(1)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
inputs, labels = torch.randn(12, 6), torch.tensor([0, 1, 2] * 4)  # every positive pair spans the processes, too
model = accelerator.prepare(model)
share = slice(6 * accelerator.process_index, 6 * accelerator.process_index + 6)
if accelerator.num_processes == 1:
    share = slice(None)
embeddings, labels = gather_embeddings(accelerator, model(inputs[share]), labels[share])
distances = pairwise_distances(embeddings)
mined = batch_hard(distances, labels)
loss = triplet(*mined.of(distances), 5.0)
accelerator.backward(loss)
if accelerator.is_main_process:
    gradients = [parameter.grad for parameter in model.parameters()]
    torch.save([loss.detach(), embeddings.detach(), torch.stack(list(mined)), *gradients], sys.argv[1])
accelerator.end_training()
"""


@pytest.mark.slow
def test_mining_in_two_processes_agrees_with_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [str(tmp_path / "script.py"), str(tmp_path / "two.pt")]
    subprocess.run([sys.executable, *TWO_PROCESSES, *command], cwd=ROOT, check=True, env=environment)
    monkeypatch.setattr(sys, "argv", [command[0], str(tmp_path / "one.pt")])
    runpy.run_path(command[0])
    single, double = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("one", "two"))
    triplets = single[2].T.tolist()
    assert len(triplets) == 12
    assert any((a < 6) != (n < 6) for a, _, n in triplets), "no negative from the other process: this shows nothing"
    # The last bias moves all embeddings alike, which changes no distance.
    assert all(gradient.abs().max() > 1e-3 for gradient in single[3:-1])
    for alone, shared in zip(single, double, strict=True):
        torch.testing.assert_close(shared, alone, rtol=1e-5, atol=1e-6)
