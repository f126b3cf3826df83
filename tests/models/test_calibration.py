"""Temperature against a numerical search, calibration error against a loop."""

from __future__ import annotations

import pytest
import torch
from scipy.optimize import minimize_scalar  # type: ignore[import-untyped]
from torch.nn import functional as F

from models.calibration import expected_calibration_error, fit_temperature


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


def test_extremes_stay_finite() -> None:
    right = F.one_hot(torch.arange(10)).float()
    assert fit_temperature(right, torch.arange(10)) == pytest.approx(0.05)
    with pytest.raises(ValueError, match="at least one"):
        fit_temperature(torch.empty(0, 10), torch.empty(0, dtype=torch.long))
    with pytest.raises(ValueError, match="finite"):
        fit_temperature(torch.full((1, 10), torch.nan), torch.tensor([0]))


def test_ece_is_a_loop_over_bins() -> None:
    logits, labels = sample(2.0, 3_000)
    probabilities = logits.softmax(1)
    confidence, predicted = probabilities.max(1)
    expected = 0.0
    for k in range(15):
        inside = [i for i in range(3_000) if k / 15 < float(confidence[i]) <= (k + 1) / 15]
        if inside:
            right = sum(int(predicted[i] == labels[i]) for i in inside) / len(inside)
            mean = sum(float(confidence[i]) for i in inside) / len(inside)
            expected += len(inside) / 3_000 * abs(right - mean)
    assert expected_calibration_error(probabilities, labels) == pytest.approx(expected, abs=1e-5)


def test_ece_needs_finite_rows() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        expected_calibration_error(torch.empty(0, 2), torch.empty(0, dtype=torch.long))
    with pytest.raises(ValueError, match="finite"):
        expected_calibration_error(torch.full((1, 2), torch.nan), torch.tensor([0]))


def test_ece_of_an_example() -> None:
    probabilities = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.2, 0.8], [0.2, 0.8]])
    labels = torch.tensor([0, 1, 1, 1])
    # Half right at 0.9, all right at 0.8: (0.4 + 0.2) / 2.
    assert expected_calibration_error(probabilities, labels) == pytest.approx(0.3)


def test_confidence_on_an_edge_is_in_the_lower_bin() -> None:
    probabilities = torch.tensor([[0.5, 0.5], [0.75, 0.25]])
    # Bins (0, 0.5] and (0.5, 1]: wrong at 0.5 and right at 0.75 do not cancel. (0.5 + 0.25) / 2.
    assert expected_calibration_error(probabilities, torch.tensor([1, 0]), bins=2) == pytest.approx(0.375)
