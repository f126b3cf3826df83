"""The table of denoisers: the same noise for all, settings chosen on training pictures, the way to a page."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

from benchmarks import tables
from benchmarks.models import denoisers, denoising
from benchmarks.models.denoisers import Method, classical, network
from benchmarks.models.denoising import Benchmark, add_noise, measure, measure_all, strips, table
from models import checkpoint
from models.preprocess import Preprocess
from models.vae import VAE
from tests.training.conftest import png, save, strokes, write_parquet
from training.core.errors import DataError
from training.metrics.reconstruction import psnr, ssim

UNIT = Preprocess(mode="L", size=(28, 28), mean=(0,), std=(255,))
SMALL: dict[str, object] = {"in_channels": 1, "image_size": 28, "widths": [8, 8], "blocks": 1}
TINY: dict[str, object] = {"image_size": 28, "widths": [4, 4], "hidden": 0, "latent": 3}


def pictures(count: int, seed: int = 0) -> Tensor:
    return torch.stack([UNIT(picture) for picture in strokes(count, seed)[0]]).double()


def without_bm3d() -> list[Method]:
    """Its package is no part of the project."""
    return [method for method in classical() if method.name != "BM3D"]


BENCHMARK = Benchmark("strokes", (50,), ("own",), 3, lambda count: (pictures(count, 1), pictures(2, 2)))


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty folders for data sets and for runs, `data` and `runs`."""
    monkeypatch.setenv("VESTIBULE_DATASETS", str(tmp_path / "data"))
    monkeypatch.setenv("VESTIBULE_RUNS", str(tmp_path / "runs"))
    return tmp_path


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Results, page and pictures in a folder of the test's own; an untrained denoiser `own` among the weights."""
    monkeypatch.setattr(denoising, "RESULTS", tmp_path / "denoising.csv")
    monkeypatch.setattr(denoising, "PAGE", tmp_path / "denoising.md")
    monkeypatch.setattr(denoising, "PICTURES", tmp_path / "pictures")
    monkeypatch.setattr(denoising, "BENCHMARKS", (BENCHMARK,))
    monkeypatch.setattr(denoising, "classical", without_bm3d)
    save(tmp_path / "weights" / "own", "denoiser", SMALL, task="denoise", preprocess=UNIT)
    return tmp_path


def test_noise_is_white_not_clipped_and_a_function_of_its_place() -> None:
    clean = torch.full((40, 1, 28, 28), 0.9, dtype=torch.float64)
    noisy = add_noise(clean, 127.5, "here")
    assert (noisy - clean).std() == pytest.approx(0.5, rel=0.02)
    assert (noisy - clean).mean() == pytest.approx(0, abs=0.01)
    assert noisy.max() > 1
    assert (add_noise(clean[:3], 127.5, "here") == noisy[:3]).all()
    assert (add_noise(clean[:3], 127.5, "there") != noisy[:3]).any()


@pytest.mark.parametrize("name", ["non-local means", "total variation"])
@pytest.mark.parametrize("channels", [1, 3])
def test_classical_methods_help_with_the_best_of_their_settings(name: str, channels: int) -> None:
    clean = pictures(2).expand(-1, channels, -1, -1)
    noisy = add_noise(clean, 50, "test")
    method = next(method for method in classical() if method.name == name)
    few = Method(name, dict(list(method.candidates.items())[:4]))
    best, restore = few.tuned(noisy, clean, 50 / 255)
    each = {key: float(psnr(one(noisy, 50 / 255).clamp(0, 1), clean).mean()) for key, one in few.candidates.items()}
    assert each[best] == max(each.values()) > min(each.values())
    restored = restore(noisy, 50 / 255)
    assert restored.shape == clean.shape
    assert (psnr(restored, clean) > psnr(noisy, clean) + 3).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_bm3d_helps(channels: int) -> None:
    pytest.importorskip("bm3d")
    clean = pictures(1).expand(-1, channels, -1, -1)
    noisy = add_noise(clean, 50, "test")
    restored = next(method for method in classical() if method.name == "BM3D").candidates["profile np"](noisy, 50 / 255)
    assert float(psnr(restored, clean)) > float(psnr(noisy, clean)) + 3


def test_networks_answer_as_they_are(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(denoisers, "_ROWS_AT_ONCE", 2)
    noisy = add_noise(pictures(3), 50, "test")
    save(desk / "weights" / "vae", "vae-denoiser", TINY, task="denoise", preprocess=UNIT)
    for name in ("own", "vae"):
        module, card = checkpoint.load(desk / "weights" / name)
        with torch.inference_mode():
            if isinstance(module, VAE):
                none = torch.zeros(3, 0)
                expected = module.decode(module.posterior(noisy.float(), none)[0], none)
            else:
                expected = module(noisy.float())
        method = network(desk / "weights" / name)
        torch.testing.assert_close(method.candidates[""](noisy, 0.0), expected.double())
        assert (method.name, method.version) == (name, card.version)


def test_what_does_not_denoise_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "vae", "vae", TINY, task="generate", preprocess=UNIT)
    signed = UNIT.model_copy(update={"mean": (127.5,), "std": (127.5,)})
    save(tmp_path / "signed", "denoiser", SMALL, task="denoise", preprocess=signed)
    for name in ("vae", "signed"):
        with pytest.raises(DataError, match="not a network that denoises"):
            network(tmp_path / name)


def test_a_row_has_the_figures_of_a_plain_computation(desk: Path) -> None:
    test, training = BENCHMARK.load(3)
    row = measure(network(desk / "weights" / "own"), BENCHMARK, 50, test, training)
    module, _ = checkpoint.load(desk / "weights" / "own")
    with torch.inference_mode():
        restored = module(add_noise(test, 50, "strokes").float()).double().clamp(0, 1)
    assert row["psnr"] == f"{float(psnr(restored, test).mean()):.3f}"
    assert row["ssim"] == f"{float(ssim(restored, test).mean()):.4f}"


def test_settings_are_chosen_on_training_pictures_alone() -> None:
    """Of two candidates, each right about one of the sets, the one that is right about the training pictures."""
    test, training = BENCHMARK.load(3)
    candidates: Mapping[str, denoisers.Restore] = {
        "knows the test": lambda noisy, _: test[: len(noisy)],
        "knows the training": lambda noisy, _: training if len(noisy) == len(training) else noisy,
    }
    row = measure(Method("x", candidates), BENCHMARK, 50, test, training)
    assert row["setting"] == "knows the training"


def test_only_what_is_missing_is_measured(desk: Path) -> None:
    weights = desk / "weights"
    first = denoising.methods(BENCHMARK, weights)
    assert [method.name for method in first] == ["noisy", "non-local means", "total variation", "own"]
    quick = [first[0], first[3]]
    measure_all(BENCHMARK, quick)
    rows = tables.read(denoising.RESULTS)
    assert [row["method"] for row in rows] == ["noisy", "own"]
    for row in rows:
        row["psnr"] = "99"  # not measured again: it stays
    tables.write(denoising.RESULTS, denoising.COLUMNS, rows)
    measure_all(BENCHMARK, quick)
    assert [row["psnr"] for row in tables.read(denoising.RESULTS)] == ["99", "99"]
    save(weights / "own", "denoiser", SMALL | {"blocks": 2}, task="denoise", preprocess=UNIT)
    measure_all(BENCHMARK, denoising.methods(BENCHMARK, weights)[::3])
    again = {row["method"]: row for row in tables.read(denoising.RESULTS)}
    assert again["noisy"]["psnr"] == "99"
    assert again["own"]["psnr"] != "99"
    assert again["own"]["version"] == checkpoint.read_card(weights / "own").version


def test_a_set_with_too_few_pictures_is_refused(desk: Path) -> None:
    short = Benchmark("strokes", (50,), (), 9, lambda count: (pictures(3), pictures(2)))
    with pytest.raises(DataError, match="has 3 pictures, not 9"):
        measure_all(short, without_bm3d()[:1])


def test_the_table_compares_with_bm3d_and_keeps_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(denoising, "BENCHMARKS", (BENCHMARK,))
    common = {"set": "strokes", "sigma": "50", "version": "", "pictures": "3", "ssim": "0.5", "standard_error": "0.1"}
    rows = [
        {**common, "method": "own", "setting": "", "psnr": "31.5"},
        {**common, "method": "BM3D", "setting": "profile np", "psnr": "30"},
    ]
    assert table(rows).splitlines()[2:] == [
        "| strokes | 50 | BM3D (profile np) | 3 | 30.00 ± 0.10 | +0.00 | 0.500 |",
        "| strokes | 50 | own | 3 | 31.50 ± 0.10 | +1.50 | 0.500 |",
    ]
    assert table(rows[:1]).endswith("| own | 3 | 31.50 ± 0.10 |  | 0.500 |")


def test_strips_have_a_row_a_picture_and_a_column_a_method(desk: Path) -> None:
    clean = pictures(2)
    drawn = np.asarray(Image.open(io.BytesIO(strips(clean, BENCHMARK, (25, 50), desk / "weights", scale=1))))
    assert drawn.shape == (4 * 30 - 2, 5 * 30 - 2)
    assert (drawn[30:58, :28] == (clean[1, 0] * 255).round().numpy()).all()
    noisy = (add_noise(clean, 50, "strips")[0, 0].clamp(0, 1) * 255).round().numpy()
    assert (drawn[60:88, 30:58] == noisy).all()


def test_the_commands_write_the_page(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(denoising, "BENCHMARKS", (BENCHMARK,) * 3)
    monkeypatch.setattr(denoising, "public_faces", lambda: pictures(1))
    arguments = ["--weights", str(desk / "weights")]
    done = CliRunner().invoke(denoising.cli, ["run", *arguments, "--only", "own"])
    assert done.exit_code == 0, done.output
    assert CliRunner().invoke(denoising.cli, ["report", *arguments]).exit_code == 0
    assert "| strokes | 50 | own | 3 |" in denoising.PAGE.read_text()
    assert {path.name for path in denoising.PICTURES.iterdir()} == {"denoising-mnist.png", "denoising-photo.png"}


def test_test_and_training_pictures_are_of_their_splits(folders: Path) -> None:
    for split, count, seed in (("train", 90, 1), ("test", 20, 2)):
        drawn, labels = strokes(count, seed)
        write_parquet(folders / f"data/strokes/{split}.parquet", [png(p) for p in drawn], labels)
    test, training = denoising._classes("strokes", UNIT)(20)
    assert len(training) == denoising.TUNING
    torch.testing.assert_close(test, pictures(20, 2))
    known = pictures(90, 1)
    assert all(float((known - one).abs().flatten(1).amax(dim=1).min()) < 1e-6 for one in training)
