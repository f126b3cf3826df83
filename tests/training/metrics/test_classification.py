"""The calibration error of a classifier against a loop over bins."""

from __future__ import annotations

import pytest
import torch

from training.metrics.classification import expected_calibration_error


def test_calibration_error_agrees_with_a_loop_over_bins() -> None:
    generator = torch.Generator().manual_seed(0)
    probabilities = (torch.randn(3_000, 10, generator=generator) * 4).softmax(dim=1)
    labels = torch.multinomial(probabilities.sqrt(), 1, generator=generator)[:, 0]
    confidence, predicted = probabilities.max(dim=1)
    expected = 0.0
    for k in range(15):
        inside = (k / 15 < confidence) & (confidence <= (k + 1) / 15)
        gaps = (predicted == labels).double()[inside] - confidence.double()[inside]
        expected += abs(float(gaps.sum())) / 3_000
    assert expected > 0.05
    assert expected_calibration_error(probabilities, labels) == pytest.approx(expected, abs=1e-5)


def test_confidence_on_an_edge_is_in_the_lower_bin() -> None:
    probabilities = torch.tensor([[0.5, 0.5], [0.75, 0.25]])
    # Bins (0, 0.5] and (0.5, 1]: wrong at 0.5 and right at 0.75 do not cancel. (0.5 + 0.25) / 2.
    assert expected_calibration_error(probabilities, torch.tensor([1, 0]), bins=2) == pytest.approx(0.375)


@pytest.mark.parametrize(("rows", "message"), [(0, "at least one row"), (1, "finite")])
def test_missing_or_infinite_rows_are_refused(rows: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        expected_calibration_error(torch.full((rows, 10), torch.nan), torch.zeros(rows, dtype=torch.long))
