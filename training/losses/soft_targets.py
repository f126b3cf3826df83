"""The loss of a classifier against a teacher's logits."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def logit_distillation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return the mean divergence (nats, at least 0) of the student's from the teacher's softened probabilities.

    Both are logits [N, K], divided by `temperature` before the softmax. The factor temperature^2 makes the gradients
    independent of the temperature where it is high.

    Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2.
    """
    expected, actual = F.log_softmax(teacher / temperature, dim=1), F.log_softmax(student / temperature, dim=1)
    return temperature**2 * F.kl_div(actual, expected, log_target=True, reduction="batchmean")
