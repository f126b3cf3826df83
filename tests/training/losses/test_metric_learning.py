"""The losses against plain loops and pytorch-metric-learning, and degenerate batches."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning import losses as pml_losses  # type: ignore[import-untyped]
from torch import Tensor
from torch.nn import functional as F

from training.losses.metric_learning import (
    Metric,
    contrastive,
    distillation,
    margin_softmax,
    pairwise_distances,
    pointwise_distillation,
    relational_distillation,
    triplet,
)
from training.losses.mining import all_pairs, batch_all

METRICS: tuple[Metric, ...] = ("euclidean", "cosine")
Vectors = npt.NDArray[np.float64]


def distance(first: Vectors, second: Vectors, metric: str) -> float:
    a: list[float] = first.tolist()
    b: list[float] = second.tolist()
    if metric == "euclidean":
        return math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)))
    lengths = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(y * y for y in b))
    return 1 - sum(x * y for x, y in zip(a, b, strict=True)) / lengths


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


@st.composite
def batches(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Vectors [N, 5] in float64 with some that coincide, and labels [N]; N from 1, one to four labels."""
    n = draw(st.integers(1, 9))
    labels = draw(st.lists(st.integers(0, draw(st.integers(0, 3))), min_size=n, max_size=n))
    vectors = np.random.default_rng(draw(st.integers(0, 2**32))).normal(size=(n, 5))
    copied = draw(st.lists(st.integers(0, n - 1), min_size=n, max_size=n))
    if draw(st.booleans()):
        vectors = vectors[copied]
    return torch.from_numpy(vectors), torch.tensor(labels)


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("metric", METRICS)
@settings(deadline=None, max_examples=40)
@given(batch=batches(), margin=st.sampled_from([0.2, 1.0]))
def test_contrastive_agrees_with_a_loop(
    batch: tuple[Tensor, Tensor], margin: float, metric: Metric, squared: bool
) -> None:
    vectors, labels = batch
    positive, negative = [], []
    for i, j in combinations(range(len(labels)), 2):
        d = distance(vectors[i].numpy(), vectors[j].numpy(), metric)
        if labels[i] == labels[j]:
            positive.append(d * d / 2 if squared else d)
        else:
            lacking = max(0.0, margin - d)
            negative.append(lacking * lacking / 2 if squared else lacking)
    distances = pairwise_distances(vectors, metric)
    loss = contrastive(*all_pairs(distances, labels).of(distances), margin, squared=squared)
    assert float(loss) == pytest.approx(mean(positive) + mean(negative), abs=1e-7)


@pytest.mark.parametrize("active_only", [False, True])
@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("metric", METRICS)
@settings(deadline=None, max_examples=25)
@given(batch=batches(), margin=st.sampled_from([0.2, 1.0]))
def test_triplet_agrees_with_a_loop(
    batch: tuple[Tensor, Tensor], margin: float, metric: Metric, squared: bool, active_only: bool
) -> None:
    vectors, labels = batch
    power = 2 if squared else 1
    losses = []
    for a in range(len(labels)):
        for p in range(len(labels)):
            for n in range(len(labels)):
                if a != p and labels[a] == labels[p] and labels[a] != labels[n]:
                    near = distance(vectors[a].numpy(), vectors[p].numpy(), metric) ** power
                    far = distance(vectors[a].numpy(), vectors[n].numpy(), metric) ** power
                    losses.append(max(0.0, margin + near - far))
    if active_only:
        losses = [loss for loss in losses if loss > 0]
    distances = pairwise_distances(vectors, metric) ** power
    loss = triplet(*batch_all(distances, labels).of(distances), margin, active_only=active_only)
    assert float(loss) == pytest.approx(mean(losses), abs=1e-7)


def test_margin_softmax_agrees_with_pytorch_metric_learning() -> None:
    torch.manual_seed(0)
    reference = pml_losses.CosFaceLoss(num_classes=6, embedding_size=16, margin=0.35, scale=20)
    x, y = (torch.randn(24, 16, generator=torch.Generator().manual_seed(3)).requires_grad_() for _ in range(2))
    labels, proxies = torch.arange(24) % 6, reference.W.detach().T.clone().requires_grad_()
    loss, expected = margin_softmax(x, proxies, labels, margin=0.35, scale=20), reference(y, labels)
    assert float(expected.detach()) > 0.01, "a loss near zero shows nothing"
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    (of_x, of_proxies), (of_y, of_weights) = (
        torch.autograd.grad(value, inputs) for value, inputs in ((loss, (x, proxies)), (expected, (y, reference.W)))
    )
    torch.testing.assert_close(of_x, of_y, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(of_proxies, of_weights.T, rtol=1e-4, atol=1e-5)


def test_distillation_agrees_with_a_loop() -> None:
    generator = np.random.default_rng(0)
    student, teacher, centre = generator.normal(size=(7, 4)), generator.normal(size=(7, 4)), generator.normal(size=4)
    centred = [row - centre for row in teacher]
    point = mean([distance(s, t, "cosine") for s, t in zip(student, centred, strict=True)])
    pairs = combinations(range(7), 2)
    gaps = [distance(student[i], student[j], "cosine") - distance(centred[i], centred[j], "cosine") for i, j in pairs]
    relation = mean([gap**2 / 2 if abs(gap) <= 1 else abs(gap) - 0.5 for gap in gaps])
    assert max(map(abs, gaps)) > 1 > min(map(abs, gaps)), "both branches of Huber's loss"
    loss = distillation(*(torch.from_numpy(x) for x in (student, teacher, centre)), relations=3.0)
    assert float(loss) == pytest.approx(point + 3 * relation, abs=1e-9)


def test_other_dimensions_allow_relational_distillation_only() -> None:
    student, teacher = torch.randn(5, 3), torch.randn(5, 8)
    assert relational_distillation(student, teacher) > 0
    # The first columns of an identity map keep all cosines.
    assert relational_distillation(F.pad(teacher, (0, 4)), teacher) == pytest.approx(0, abs=1e-7)
    with pytest.raises(ValueError, match=r"teacher's shape \[5, 8\], got \[5, 3\]"):
        pointwise_distillation(student, teacher)


def losses(labels: Tensor) -> dict[str, Callable[[Tensor], Tensor]]:
    """Every loss as a function of the vectors [N, 4]."""
    count = int(labels.max()) + 1 if len(labels) else 1
    generator = torch.Generator().manual_seed(5)
    proxies = torch.randn(count, 4, generator=generator, dtype=torch.float64)
    teacher = torch.randn(len(labels), 4, generator=generator, dtype=torch.float64)
    created: dict[str, Callable[[Tensor], Tensor]] = {
        "softmax": lambda x: margin_softmax(x, proxies, labels, margin=0.3, scale=8),
        "distillation": lambda x: distillation(x, teacher, teacher.new_ones(4)),
    }
    for metric in METRICS:
        for power in (False, True):

            def pairs(x: Tensor, metric: Metric = metric, power: bool = power) -> Tensor:
                distances = pairwise_distances(x, metric)
                return contrastive(*all_pairs(distances, labels).of(distances), 1.0, squared=power)

            def triplets(x: Tensor, metric: Metric = metric, power: bool = power) -> Tensor:
                distances = pairwise_distances(x, metric)
                return triplet(*batch_all(distances, labels).of(distances.square() if power else distances), 0.5)

            created[f"contrastive {metric} {power}"] = pairs
            created[f"triplet {metric} {power}"] = triplets
    return created


@pytest.mark.parametrize("name", losses(torch.tensor([0])))
def test_gradients_agree_with_finite_differences(name: str) -> None:
    labels = torch.tensor([0, 0, 1, 1, 2])
    x = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).requires_grad_()
    assert losses(labels)[name](x) > 0
    assert torch.autograd.gradcheck(losses(labels)[name], (x,))


DEGENERATE = {
    "no sample": (torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)),
    "one sample": (torch.randn(1, 4), torch.tensor([0])),
    "one identity": (torch.randn(4, 4), torch.zeros(4, dtype=torch.long)),
    "no positive": (torch.randn(4, 4), torch.arange(4)),
    "all vectors one": (torch.ones(4, 4), torch.tensor([0, 0, 1, 1])),
    "all vectors zero": (torch.zeros(4, 4), torch.tensor([0, 0, 1, 1])),
}


@pytest.mark.parametrize("name", losses(torch.tensor([0])))
@pytest.mark.parametrize("case", DEGENERATE)
def test_degenerate_batches(case: str, name: str) -> None:
    vectors, labels = DEGENERATE[case]
    x = vectors.double().requires_grad_()
    loss = losses(labels)[name](x)
    assert loss.shape == ()
    loss.backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert loss.isfinite()
    assert x.grad.isfinite().all()
    kind = name.partition(" ")[0]
    nothing = {
        "triplet": {"no sample", "one sample", "one identity", "no positive"},
        "contrastive": {"no sample", "one sample"},
        "softmax": {"no sample", "one sample", "one identity"},
        "distillation": {"no sample"},
    }
    if case in nothing[kind]:
        assert loss == 0
        assert not x.grad.any()
    if kind in {"triplet", "contrastive"} and case.startswith("all vectors"):
        assert not x.grad.any(), "where vectors coincide a distance has no direction"
    if kind == "triplet" and case.startswith("all vectors"):
        assert float(loss.detach()) == pytest.approx(0.5, abs=1e-12)  # the margin, which no step can lessen


def test_equal_vectors_have_zero_distance_in_float32() -> None:
    vectors = F.normalize(torch.randn(40, 128), dim=1)[torch.arange(80) % 40]
    distances = pairwise_distances(vectors)
    assert distances.diagonal(40).abs().max() == 0
    exact = pairwise_distances(vectors.double())
    assert (distances - exact).abs().max() < 1e-6
    assert (pairwise_distances(vectors, "cosine") - exact**2 / 2).abs().max() < 1e-6
