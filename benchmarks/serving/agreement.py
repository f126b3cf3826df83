"""Whether servers answer the same: what they say of real pictures, beside torch in float32."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.serving.load_generator import Reply
from benchmarks.serving.peer_servers.classifier import Decoder
from benchmarks.serving.servers import Kind
from models import checkpoint
from models.card import Tolerance


@dataclass(frozen=True)
class Same:
    """How one server's answers are those of torch: the share of pictures with the same likeliest class, and the most
    that a probability differs by.
    """

    case: str
    server: str
    pictures: int
    status: str = "ok"
    runtime: str = ""
    failed: int | None = None
    same_top1: float | None = None
    furthest: float | None = None
    machine: str = ""
    date: str = ""

    @property
    def good(self) -> bool:
        """Whether that is within what a card tolerates by default, and nothing failed."""
        if self.status != "ok" or self.failed or self.same_top1 is None or self.furthest is None:
            return False
        return self.same_top1 >= Tolerance().top1 and self.furthest <= Tolerance().probability


@torch.inference_mode()
def expected(model: Path, pictures: Sequence[bytes]) -> Tensor:
    """The probabilities [N, K] that torch has for the pictures."""
    module, card = checkpoint.load(model)
    decode = Decoder(model)
    logits = [module(torch.stack([decode(one) for one in pictures[i : i + 16]])) for i in range(0, len(pictures), 16)]
    return (torch.cat(logits) / card.temperature).softmax(dim=1)


def compared(row: Same, kind: Kind, replies: Sequence[Reply], wanted: Tensor) -> Same:
    """The row with what the replies, one for each row of `wanted` [N, K], come to."""
    found = [(i, kind.classes(json.loads(reply.body))) for i, reply in enumerate(replies) if reply.status == 200]
    best = wanted.argmax(dim=1).tolist()
    equal = sum(classes[0]["class_id"] == best[i] for i, classes in found)
    off = [abs(one["confidence"] - float(wanted[i, one["class_id"]])) for i, classes in found for one in classes]
    return replace(
        row,
        failed=len(replies) - len(found),
        same_top1=equal / len(replies),
        furthest=max(off, default=None),
    )
