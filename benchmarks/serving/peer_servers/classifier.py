"""What all peers serve: bytes of a picture in, its likeliest classes out."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from models import checkpoint
from models.preprocess import Preprocess
from models.runtime import TorchRuntime
from models.runtime_selection import RuntimeSelector

MAX_BATCH = 32  # as Vestibule's default
AT_MOST = 256  # requests in a server that has a limit of its own; as Vestibule's default
WAIT_S = 0.005  # for a batch to fill, where there is a timer
TOP = 5
CORES = os.cpu_count() or 1
FOLDER, RUNTIME = "SERVING_MODEL", "SERVING_RUNTIME"  # for servers whose workers are started by others
PIDS = "SERVING_PIDS"  # a file, to which a process that has the model in it adds its id
STATE = "SERVING_STATE"  # the folder where what Vestibule chose is kept

Answer = list[dict[str, Any]]


class Decoder:
    """The same preprocessing as Vestibule's, as the card has it."""

    def __init__(self, folder: Path):
        self.preprocess: Preprocess = checkpoint.read_card(folder).preprocess

    def __call__(self, data: bytes) -> Tensor:
        """The bytes of a picture -> float32 [C, H, W].

        Raises:
            OSError: what Pillow raises where it cannot decode it.
        """
        with Image.open(io.BytesIO(data)) as image:
            return self.preprocess(image.convert("RGB"))


class Classifier:
    """torch with channels last, on all cores; with `openvino` the very network that Vestibule chose to serve."""

    def __init__(self, folder: Path, runtime: str):
        module, card = checkpoint.load(folder)
        self._temperature = card.temperature
        self._run: Any = TorchRuntime(module.to(memory_format=torch.channels_last), torch.device("cpu"))
        self._layout = torch.channels_last
        if runtime == "openvino":
            compiled = Path(os.environ[STATE]) / "compiled"
            choice = RuntimeSelector(
                module, card.preprocess, card.preprocess.shape, "logits", card.tolerance, f"{card.sha256} ", compiled
            )
            self._run, _ = choice.select(self._run, Path("examples"))
            self._layout = torch.contiguous_format
        with Path(os.environ[PIDS]).open("a") as file:
            print(os.getpid(), file=file)

    def __call__(self, pictures: Sequence[Tensor]) -> list[Answer]:
        """Preprocessed pictures, each [C, H, W] -> for each its likeliest classes."""
        batch = torch.stack(list(pictures)).contiguous(memory_format=self._layout)
        probabilities = (self._run(batch) / self._temperature).softmax(dim=1)
        values, classes = probabilities.topk(min(TOP, probabilities.shape[1]))
        return [
            [{"class_id": one, "confidence": value} for one, value in zip(of, how, strict=True)]
            for of, how in zip(classes.tolist(), values.tolist(), strict=True)
        ]
