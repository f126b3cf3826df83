"""Denoisers side by side: the same noise for all, settings chosen on training images, rows as computed plainly."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from benchmarks import tables
from benchmarks.models import denoisers, denoising
from benchmarks.models.denoisers import Method, classical, network
from benchmarks.models.denoising import Benchmark, measure, measure_all, spoil
from models import checkpoint
from models.preprocess import Preprocess
from models.vae import VAE
from tests.benchmarks.conftest import invoke
from tests.training.conftest import save, strokes
from training.metrics.reconstruction import psnr, ssim

UNIT = Preprocess(mode="L", size=(28, 28), mean=(0,), std=(255,))
SMALL: dict[str, object] = {"in_channels": 1, "image_size": 28, "widths": [8, 8], "blocks": 1}
TINY: dict[str, object] = {"image_size": 28, "widths": [4, 4], "hidden": 0, "latent": 3}


def images(count: int, seed: int = 0) -> Tensor:
    """Strokes, float64 [N, 1, 28, 28] in 0..1."""
    return torch.stack([UNIT(image) for image in strokes(count, seed)[0]]).double()


BENCHMARK = Benchmark("strokes", ("50",), ("own",), 3, lambda count: (images(count, 1), images(2, 2)))


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Untrained denoisers `own` and `vae`; results, page and plots beside their folder. BM3D is not installed."""
    for name, path in {"RESULTS": "denoising.csv", "PAGE": "denoising.md", "PICTURES": "plots"}.items():
        monkeypatch.setattr(denoising, name, tmp_path / path)
    monkeypatch.setattr(denoising, "BENCHMARKS", (BENCHMARK,) * 3)
    monkeypatch.setattr(denoising, "classical", lambda: [method for method in classical() if method.name != "BM3D"])
    save(tmp_path / "weights/own", "denoiser", SMALL, task="denoise", preprocess=UNIT)
    save(tmp_path / "weights/vae", "vae-denoiser", TINY, task="denoise", preprocess=UNIT)
    return tmp_path / "weights"


@pytest.mark.parametrize("name", ["non-local means", "total variation"])
@pytest.mark.parametrize("channels", [1, 3])
def test_classical_methods_help_with_the_best_of_their_settings(name: str, channels: int) -> None:
    clean = images(2).expand(-1, channels, -1, -1)
    noisy = spoil(clean, "50", "test")
    method = next(method for method in classical() if method.name == name)
    few = Method(name, dict(list(method.candidates.items())[:4]))
    best, restore = few.tuned(noisy, clean, 50 / 255)
    each = {key: float(psnr(one(noisy, 50 / 255).clamp(0, 1), clean).mean()) for key, one in few.candidates.items()}
    assert each[best] == max(each.values()) > min(each.values())
    restored = restore(noisy, 50 / 255)
    assert restored.shape == clean.shape
    assert (psnr(restored, clean) > psnr(noisy, clean) + 3).all()


@pytest.mark.parametrize("name", ["own", "vae"])
def test_networks_restore_as_the_module_does(name: str, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(denoisers, "_ROWS_AT_ONCE", 2)
    noisy = spoil(images(3), "50", "test")
    module, card = checkpoint.load(weights / name)
    with torch.inference_mode():
        if isinstance(module, VAE):
            no_labels = torch.zeros(3, 0)
            expected = module.decode(module.posterior(noisy.float(), no_labels)[0], no_labels)
        else:
            expected = module(noisy.float())
    method = network(weights / name)
    torch.testing.assert_close(method.candidates[""](noisy, 0.0), expected.double())
    assert (method.name, method.version) == (name, card.version)


def test_settings_are_chosen_on_training_images_alone() -> None:
    test, training = BENCHMARK.load(3)
    candidates: Mapping[str, denoisers.Restore] = {
        "knows the test": lambda noisy, _: test[: len(noisy)],
        "knows the training": lambda noisy, _: training if len(noisy) == len(training) else noisy,
    }
    assert measure(Method("x", candidates), BENCHMARK, "50", test, training)["setting"] == "knows the training"


def test_a_method_is_told_the_mean_deviation_of_photos() -> None:
    told: list[float] = []

    def restore(noisy: Tensor, sigma: float) -> Tensor:
        told.append(sigma)
        return noisy

    test, training = BENCHMARK.load(3)
    row = measure(Method("x", {"": restore}), BENCHMARK, "camera", test, training)
    taken, spoilt = spoil(training, "camera", "strokes", "tuning"), spoil(test, "camera", "strokes")
    assert told == pytest.approx([float((taken - training).std())])
    assert row["psnr"] == f"{float(psnr(spoilt, test).mean()):.3f}"
    assert row["noise"] == "camera"
    assert torch.equal(spoilt[1:2], spoil(test[:2], "camera", "strokes")[1:])


def test_only_missing_rows_are_measured(weights: Path) -> None:
    quick = denoising.methods(BENCHMARK, weights)[::3]
    measure_all(BENCHMARK, quick)
    rows = tables.read(denoising.RESULTS)
    assert [row["method"] for row in rows] == ["noisy", "own"]
    tables.write(denoising.RESULTS, denoising.COLUMNS, [row | {"psnr": "99"} for row in rows])
    save(weights / "own", "denoiser", SMALL | {"blocks": 2}, task="denoise", preprocess=UNIT)
    measure_all(BENCHMARK, denoising.methods(BENCHMARK, weights)[::3])
    again = {row["method"]: row for row in tables.read(denoising.RESULTS)}
    assert again["noisy"]["psnr"] == "99" != again["own"]["psnr"]
    assert again["own"]["version"] == checkpoint.read_card(weights / "own").version


def test_the_commands_write_rows_the_page_and_strips(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(denoising, "public_faces", lambda: images(2))
    for command in (["run", "--only", "own"], ["report"]):
        result = invoke(denoising.cli, *command, "--weights", weights)
        assert result.exit_code == 0, result.output
    (row,) = tables.read(denoising.RESULTS)
    test, _ = BENCHMARK.load(3)
    module, _ = checkpoint.load(weights / "own")
    noisy = spoil(test, "50", "strokes")
    assert float((noisy - test).std()) == pytest.approx(50 / 255, rel=0.05)
    with torch.inference_mode():
        restored = module(noisy.float()).double().clamp(0, 1)
    assert row["psnr"] == f"{float(psnr(restored, test).mean()):.3f}"
    assert row["ssim"] == f"{float(ssim(restored, test).mean()):.4f}"
    assert "| strokes | 50 | own | 3 |" in denoising.PAGE.read_text()
    assert {path.name for path in denoising.PICTURES.iterdir()} == {"denoising-mnist.png", "denoising-photo.png"}
    # A row for each sigma and image, a column for each method.
    drawn = np.asarray(Image.open(denoising.PICTURES / "denoising-photo.png"))
    assert drawn.shape == (6 * 30 - 2, 5 * 30 - 2)
    assert (drawn[30:58, :28] == (images(2)[1, 0] * 255).round().numpy()).all()
