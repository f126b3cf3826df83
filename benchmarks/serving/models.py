"""The models that serving is measured with, as folders that Vestibule serves and everybody else can read.

LeNet-5 is the shipped one. The two ResNet-18 have seeded random convolutions, batch norm's statistics of real pictures,
and a head fitted to those pictures' labels in closed form: how fast a network is depends on its shape alone, but
answers have to differ from picture to picture, and by more than rounding, for two servers to be compared by them.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from models import checkpoint
from models.preprocess import Preprocess
from models.registry import build
from models.resnet import ResidualBlock
from training.recipe.config import datasets_folder

PICTURES = 1000  # of the training split: batch norm's statistics, and the head
BATCH = 50
CLASSES = ("vehicle", "animal")
ANIMALS = range(2, 8)  # of CIFAR-10's classes
# A branch's last gamma (nearly zero, as where Goyal et al., 2017, begin), and the head's ridge as a multiple of the
# mean variance of a feature: so bfloat16 moves a logit by half a hundredth of what logits differ by, as it does in a
# trained network. In one that is random through and through it is four hundredths: rounding grows from block to block.
# And two classes: logits of ten that nobody trained are close together, and rounding changes 1 % of the likeliest.
GAMMA = 0.1
RIDGE = 100.0
SPREAD = 2.0  # standard deviation of a logit
MEAN, STD = (123.7, 116.3, 103.5), (58.4, 57.1, 57.4)


@dataclass(frozen=True)
class Case:
    """A model to be served: its name, the data set of the pictures that it is compared on."""

    name: str
    dataset: str
    size: int = 0


CASES = {
    "lenet": Case("lenet5-mnist", "mnist"),
    "resnet64": Case("resnet18-64", "cifar10", 64),
    "resnet224": Case("resnet18-224", "cifar10", 224),
}


def pictures(dataset: str, split: str, count: int) -> Iterator[tuple[bytes, int]]:
    """So many encoded pictures of the data set, evenly from the whole split, with their labels."""
    table = pyarrow.parquet.read_table(datasets_folder() / dataset / f"{split}.parquet", columns=["image", "label"])
    for row in torch.linspace(0, len(table) - 1, count).long().tolist():
        yield table["image"][row]["bytes"].as_py(), table["label"][row].as_py()


def model_folder(root: Path, case: Case, shipped: Path = Path("weights")) -> Path:
    """The model's folder below `root`, made if it is not there."""
    folder = root / case.name
    if (folder / checkpoint.CARD_FILE).is_file():
        return folder
    if case.size:
        _make(folder, case)
    else:
        shutil.copytree(shipped / case.name, folder)
    return folder


def _make(folder: Path, case: Case) -> None:
    preprocess = Preprocess(size=(case.size, case.size), interpolation="bilinear", mean=MEAN, std=STD)
    torch.manual_seed(0)
    module = build("resnet18", {"num_classes": len(CLASSES), "image_size": case.size})
    for block in module.modules():
        if isinstance(block, ResidualBlock):
            norms = [layer for layer in block.branch.modules() if isinstance(layer, nn.BatchNorm2d)]
            nn.init.constant_(norms[-1].weight, GAMMA)
    shown, labels = [], []
    # Large pictures take long, and have as much to say about batch norm's statistics in a fifth of them.
    for data, label in pictures(case.dataset, "train", PICTURES if case.size < 100 else PICTURES // 5):
        with Image.open(io.BytesIO(data)) as picture:
            shown.append(preprocess(picture.convert("RGB")))
        labels.append(int(label in ANIMALS))
    calibrate(module, torch.stack(shown), torch.tensor(labels))
    checkpoint.save(
        folder,
        module,
        name=case.name,
        description="ResNet-18 on a vehicle or an animal, its convolutions random: to measure serving with.",
        task="classify",
        architecture="resnet18",
        config={"num_classes": len(CLASSES), "image_size": case.size},
        preprocess=preprocess,
        classes=CLASSES,
        data=f"{case.dataset}, batch norm and head only",
        source="benchmarks/serving/models.py",
        license="none: it says nothing",
    )


@torch.no_grad()
def calibrate(module: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Set batch norm's statistics to those of the images [N, C, H, W], and the head to the ridge regression of the
    labels [N] on the features, scaled to logits. The module is in evaluation mode then.
    """
    norms = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
    features = module.get_submodule("features")
    module.train()
    for batch in torch.split(images, BATCH):
        features(batch)
    module.eval()
    found = torch.cat([features(batch) for batch in torch.split(images, BATCH)]).double()  # [N, D]
    targets = F.one_hot(labels).double()
    centred = found - found.mean(dim=0)
    covariance = centred.T @ centred / len(found)
    covariance.diagonal().add_(RIDGE * covariance.diagonal().mean())
    weight = torch.linalg.solve(covariance, centred.T @ (targets - targets.mean(dim=0)) / len(found)).T  # [K, D]
    scale = SPREAD / (centred @ weight.T).std()
    head = [layer for layer in module.get_submodule("head").modules() if isinstance(layer, nn.Linear)][-1]
    head.weight.copy_(scale * weight)
    head.bias.copy_(-scale * (weight @ found.mean(dim=0)))
