"""Muon against the singular value decomposition, torch's Muon and a plain loop."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from training.core.muon import Muon, orthogonalise
from training.core.seeds import generator


@pytest.mark.parametrize("shape", [(8, 27), (27, 8), (16, 16)])
def test_singular_vectors_are_kept_and_singular_values_are_near_one(shape: tuple[int, int]) -> None:
    left = torch.linalg.qr(torch.randn(shape[0], min(shape), generator=generator(1)))[0]
    right = torch.linalg.qr(torch.randn(shape[1], min(shape), generator=generator(2)))[0]
    values = torch.linspace(0.3, 1, min(shape))
    result = left.T @ orthogonalise(left @ torch.diag(values) @ right.T) @ right
    torch.testing.assert_close(result, torch.diag(result.diagonal()), rtol=0, atol=1e-4)
    assert float(result.diagonal().min()) > 0.5
    assert float(result.diagonal().max()) < 1.3
    assert not orthogonalise(torch.zeros(shape)).any()


def filters(channels_last: bool = False) -> nn.Parameter:
    weight = torch.randn(6, 4, 3, 3, generator=generator(3))
    return nn.Parameter(weight.contiguous(memory_format=torch.channels_last) if channels_last else weight)


def group(parameter: nn.Parameter) -> dict[str, object]:
    return {"params": [parameter], "lr": 0.1, "momentum": 0.6, "nesterov": True, "orthogonal": True}


@pytest.mark.parametrize("channels_last", [False, True])
def test_filters_agree_with_torch_muon(channels_last: bool) -> None:
    ours = filters(channels_last)
    matrix = nn.Parameter(filters().detach().reshape(6, 36).clone())
    optimizer = Muon([group(ours)], lr=1.0)
    # torch's momentum is an average of the gradients: the same direction as this sum, and length is lost on the way.
    reference = torch.optim.Muon([matrix], lr=0.1, weight_decay=0.0, momentum=0.6, ns_steps=3)
    for step in range(3):
        gradient = torch.randn(6, 4, 3, 3, generator=generator(4, step))
        ours.grad = gradient.clone()
        matrix.grad = gradient.reshape(6, 36).clone()
        with torch.no_grad():
            matrix.mul_(6**0.5 / torch.linalg.matrix_norm(matrix))
        optimizer.step()
        reference.step()  # type: ignore[no-untyped-call]
    # torch's is in bfloat16, of 8 bits.
    torch.testing.assert_close(ours.detach().reshape(6, 36), matrix.detach(), rtol=0, atol=0.01)
    assert ours.grad is None


def test_without_nesterov_the_update_follows_the_momentum_only() -> None:
    ours = filters()
    optimizer = Muon([group(ours) | {"nesterov": False}], lr=1.0)
    expected, buffer = filters().detach(), torch.zeros(6, 4, 3, 3)
    for step in range(2):
        gradient = torch.randn(6, 4, 3, 3, generator=generator(4, step))
        ours.grad = gradient.clone()
        optimizer.step()
        buffer = 0.6 * buffer + gradient
        expected = expected * 6**0.5 / expected.norm() - 0.1 * orthogonalise(buffer.reshape(6, 36)).view(6, 4, 3, 3)
    torch.testing.assert_close(ours.detach(), expected)


def test_other_parameters_are_updated_by_sgd() -> None:
    def parameters() -> tuple[nn.Parameter, nn.Parameter]:
        return nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2, 2))

    ours, reference, moving, still = parameters(), parameters(), filters(), filters()
    settings = {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}
    optimizer = Muon([{"params": ours}, group(moving), group(still)], **settings)  # type: ignore[arg-type]
    plain = torch.optim.SGD(reference, **settings)  # type: ignore[arg-type]

    for _ in range(3):
        optimizer.zero_grad()
        value = (ours[0].sum() ** 2 + ours[1].square().sum()) * moving.square().sum() / moving.detach().square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        plain.zero_grad()
        (reference[0].sum() ** 2 + reference[1].square().sum()).backward()  # type: ignore[no-untyped-call]
        plain.step()
    for mine, other in zip(ours, reference, strict=True):
        torch.testing.assert_close(mine, other)
    assert not torch.equal(moving, filters())
    assert torch.equal(still, filters())  # it has no gradient
