"""The temperature of a classifier against a numerical search."""

from __future__ import annotations

import pytest
import torch
from scipy.optimize import minimize_scalar  # type: ignore[import-untyped]
from torch.nn import functional as F

from models.temperature import fit_temperature


def sample(temperature: float, count: int = 20_000) -> tuple[torch.Tensor, torch.Tensor]:
    """Calibrated logits multiplied by `temperature`, with labels drawn from the calibrated probabilities."""
    generator = torch.Generator().manual_seed(0)
    calibrated = torch.randn(count, 10, generator=generator) * 2
    labels = torch.multinomial(calibrated.softmax(1), 1, generator=generator)[:, 0]
    return calibrated * temperature, labels


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_temperature_is_that_of_a_search(temperature: float) -> None:
    logits, labels = sample(temperature)
    fitted = fit_temperature(logits, labels)
    assert fitted == pytest.approx(temperature, rel=0.05)
    searched = minimize_scalar(
        lambda t: float(F.cross_entropy(logits.double() / t, labels)), bounds=(0.1, 10), options={"xatol": 1e-6}
    )
    assert fitted == pytest.approx(searched.x, rel=1e-3)


def test_temperature_has_a_lower_bound() -> None:
    labels = torch.arange(10)
    assert fit_temperature(F.one_hot(labels).float(), labels) == pytest.approx(0.05)


@pytest.mark.parametrize(("rows", "message"), [(0, "at least one row"), (1, "finite")])
def test_missing_or_infinite_rows_are_refused(rows: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_temperature(torch.full((rows, 10), torch.nan), torch.zeros(rows, dtype=torch.long))
