"""Distances between distributions, against other implementations of them and where the answer is known."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from training.metrics import distribution
from training.metrics.distribution import (
    Manifolds,
    frechet_distance,
    inception_score,
    kernel_distance,
    moments,
    precision_recall,
    within_class_distance,
)

NEAR = 1e-4  # relative


def sample(count: int, dimensions: int = 12, seed: int = 0, shift: float = 0.0) -> Tensor:
    """Return correlated features after a ReLU."""
    draw = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dimensions, dimensions, generator=torch.Generator().manual_seed(99))
    return (torch.randn(count, dimensions, generator=draw) @ mixing + shift).relu()


REAL, FAKE = sample(700), sample(600, seed=1, shift=0.4)


def test_the_frechet_distance_is_torch_fidelitys() -> None:
    reference = fid_statistics_to_metric(
        fid_features_to_statistics(REAL.double()), fid_features_to_statistics(FAKE.double()), verbose=False
    )["frechet_inception_distance"]
    assert reference > 1
    assert frechet_distance(moments(REAL), moments(FAKE)) == pytest.approx(reference, rel=NEAR)


def test_the_frechet_distance_of_few_samples_in_many_dimensions_is_symmetric_and_zero_to_itself() -> None:
    few, rest = sample(20, 64), sample(30, 64, seed=1)
    there, back = frechet_distance(moments(few), moments(rest)), frechet_distance(moments(rest), moments(few))
    assert there == pytest.approx(back, rel=1e-6)
    assert frechet_distance(moments(few), moments(few)) == pytest.approx(0, abs=1e-4 * there)


def test_the_inception_score_is_torch_fidelitys() -> None:
    logits = 3 * torch.randn(500, 10, generator=torch.Generator().manual_seed(0))
    reference = isc_features_to_metric(logits, splits=1, shuffle=False)["inception_score_mean"]
    assert inception_score(logits.double().softmax(dim=1)) == pytest.approx(reference, rel=NEAR)
    assert inception_score(torch.eye(10).repeat(3, 1)) == pytest.approx(10)
    assert inception_score(torch.full((7, 10), 0.1)) == pytest.approx(1)


def test_the_kernel_distance_is_torch_fidelitys_of_all_samples() -> None:
    item, other = REAL[:600].double(), FAKE.double()
    reference = kid_features_to_metric(
        item,
        other,
        kid_subsets=1,
        kid_subset_size=600,
        kid_kernel="poly",
        kid_kernel_poly_degree=3,
        kid_kernel_poly_gamma=None,
        kid_kernel_poly_coef0=1,
        verbose=False,
    )["kernel_inception_distance_mean"]
    assert reference > 0.01
    assert kernel_distance(item, other) == pytest.approx(reference, rel=NEAR)


def test_kernel_distance_of_different_sizes_agrees_with_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distribution, "_ROWS_AT_ONCE", 3)
    item, other = REAL[:8].double(), FAKE[:5].double()

    def kernel(x: Tensor, y: Tensor) -> float:
        return (float(x @ y) / 12 + 1) ** 3

    within = [np.mean([kernel(x, y) for x, y in combinations(rows, 2)]) for rows in (item, other)]
    between = np.mean([kernel(x, y) for x in item for y in other])
    assert kernel_distance(item, other) == pytest.approx(float(sum(within) - 2 * between), rel=1e-9)


@pytest.mark.parametrize("neighbours", [1, 3])
def test_precision_and_recall_are_torch_fidelitys(neighbours: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distribution, "_ROWS_AT_ONCE", 128)
    reference = prc_features_to_metric(
        FAKE.double(),
        REAL.double(),
        prc_neighborhood=neighbours,
        prc_batch_size=100,
        save_cpu_ram=False,
        verbose=False,
    )
    ours = precision_recall(REAL, FAKE, neighbours)
    assert 0.05 < ours.precision < 0.95
    assert ours.precision == pytest.approx(reference["precision"], rel=NEAR)
    assert ours.recall == pytest.approx(reference["recall"], rel=NEAR)


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (1e-3, 5.0), (1e6, 0.0)])
def test_distances_are_those_of_differences_and_zero_for_equal_rows(scale: float, shift: float) -> None:
    rows, targets = (sample(300, 1280, seed).double() * scale + shift for seed in (0, 1))
    targets[::7] = rows[: len(targets[::7])]
    found = torch.cat([*distribution._distances(rows, targets)])
    expected = torch.cdist(rows, targets, compute_mode="donot_use_mm_for_euclid_dist")
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    assert (found == 0).sum() == (expected == 0).sum() == len(targets[::7])


def test_precision_and_recall_fall_separately() -> None:
    clusters = [torch.randn(100, 2, generator=torch.Generator().manual_seed(n)) + 100 * n for n in range(3)]
    both = torch.cat(clusters[:2])
    assert precision_recall(both, clusters[0]) == Manifolds(1.0, 0.5)
    assert precision_recall(both, torch.cat(clusters)) == Manifolds(200 / 300, 1.0)


def test_the_distance_within_a_class_is_that_of_a_plain_loop() -> None:
    labels = torch.tensor([0] * 9 + [1] * 4 + [3])
    rows = REAL[: len(labels)].double()
    expected = [
        float(np.mean([math.dist(x, y) for x, y in combinations(rows[labels == label].tolist(), 2)]))
        for label in (0, 1)
    ]
    assert within_class_distance(rows, labels, 4).tolist() == pytest.approx([*expected, 0.0, 0.0])


@pytest.mark.parametrize("hollow", [float("nan"), float("inf")])
def test_non_finite_features_are_refused(hollow: float) -> None:
    broken = FAKE.clone()
    broken[3, 4] = hollow
    for measure in (kernel_distance, precision_recall):
        with pytest.raises(ValueError, match="finite"):
            measure(REAL, broken)
    with pytest.raises(ValueError, match="finite"):
        moments(broken)


def test_mismatched_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got \[1, 12\]"):
        moments(REAL[:1])
    with pytest.raises(ValueError, match="12 and of 5 dimensions"):
        kernel_distance(REAL, FAKE[:, :5])
    with pytest.raises(ValueError, match="3 neighbours"):
        precision_recall(REAL[:3], FAKE)
    with pytest.raises(ValueError, match="labels"):
        within_class_distance(REAL, torch.zeros(3), 1)
    for rows in (torch.eye(10)[:0], torch.ones(4, 10)):
        with pytest.raises(ValueError, match="probabilities"):
            inception_score(rows)
