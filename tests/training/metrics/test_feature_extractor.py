"""Feature extraction by classifiers and embedders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models import checkpoint
from models.embedder import Embedder
from models.preprocess import Preprocess
from tests.training.conftest import CLASSES, save
from training.core.errors import DataError
from training.metrics.feature_extractor import Extractor

COLOUR = Preprocess(size=(32, 32), mean=(127.5,) * 3, std=(127.5,) * 3)
TINY = {"backbone": "resnet20", "backbone_config": {"widths": [4, 4, 4]}, "image_size": 32, "dimensions": 8}


@pytest.fixture
def pixels() -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, (300, 28, 28, 1)).astype(np.uint8)


def test_classifier_features_and_probabilities(
    tmp_path: Path, pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
) -> None:
    folder = save(
        tmp_path / "judge", "lenet5-relu", {"num_classes": 3}, task="classify", classes=CLASSES, temperature=0.5
    )
    extractor = Extractor(folder)
    sight = extractor(pixels)
    network, card = checkpoint.load(folder)
    images = torch.stack([card.preprocess(Image.fromarray(item[..., 0])) for item in pixels])
    with torch.inference_mode():
        features = network.get_submodule("features")(images)
        logits = network(images)
    torch.testing.assert_close(sight.features, features)
    torch.testing.assert_close(sight.probabilities, (logits.double() / 0.5).softmax(dim=1))
    assert sight.labels.tolist() == logits.argmax(dim=1).tolist()
    assert extractor.name == "judge features"
    assert extractor.frechet_name == "Frechet distance (judge features)"


def test_embedder_features_without_classes(tmp_path: Path) -> None:
    folder = save(tmp_path / "faces", "embedder", TINY, task="embed", preprocess=COLOUR)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 20, 20, 3)).astype(np.uint8)
    sight = Extractor(folder)(pixels)
    network, card = checkpoint.load(folder)
    assert isinstance(network, Embedder)
    with torch.inference_mode():
        expected = network(torch.stack([card.preprocess(Image.fromarray(item)) for item in pixels]))
    torch.testing.assert_close(sight.features, expected)
    assert sight.probabilities.shape == (3, 0)
    assert sight.labels.tolist() == [0, 0, 0]


def test_fid_is_the_name_for_imagenet_inception_only(tmp_path: Path) -> None:
    small = {"num_classes": 3, "image_size": 75, "auxiliary": False}
    preprocess = Preprocess(size=(75, 75), mean=(127.5,) * 3, std=(127.5,) * 3)
    own = Extractor(
        save(tmp_path / "own", "inception-v3", small, task="classify", classes=CLASSES, preprocess=preprocess)
    )
    assert own.frechet_name == "Frechet distance (own features)"
    thousand = tuple(str(number) for number in range(1000))
    own.card = own.card.model_copy(update={"classes": thousand})
    assert own.frechet_name == "FID (own features)"


def test_other_networks_are_refused(tmp_path: Path) -> None:
    config = {"image_size": 28, "widths": [2], "hidden": 0, "latent": 2}
    folder = save(
        tmp_path / "vae",
        "vae",
        config,
        task="generate",
        preprocess=Preprocess(mode="L", size=(28, 28), mean=(0,), std=(255,)),
    )
    with pytest.raises(DataError, match="built to generate"):
        Extractor(folder)
