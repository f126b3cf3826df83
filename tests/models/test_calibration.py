"""Temperature against a numerical search, calibration error against a loop."""

from __future__ import annotations

from collections.abc import Callable

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


def test_confidence_on_an_edge_is_in_the_lower_bin() -> None:
    probabilities = torch.tensor([[0.5, 0.5], [0.75, 0.25]])
    # Bins (0, 0.5] and (0.5, 1]: wrong at 0.5 and right at 0.75 do not cancel. (0.5 + 0.25) / 2.
    assert expected_calibration_error(probabilities, torch.tensor([1, 0]), bins=2) == pytest.approx(0.375)


def test_temperature_has_a_lower_bound() -> None:
    labels = torch.arange(10)
    assert fit_temperature(F.one_hot(labels).float(), labels) == pytest.approx(0.05)


@pytest.mark.parametrize("function", [fit_temperature, expected_calibration_error])
@pytest.mark.parametrize(("rows", "message"), [(0, "at least one row"), (1, "finite")])
def test_missing_or_infinite_rows_are_refused(
    function: Callable[[torch.Tensor, torch.Tensor], float], rows: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        function(torch.full((rows, 10), torch.nan), torch.zeros(rows, dtype=torch.long))
