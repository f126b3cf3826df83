"""Denoisers side by side on test pictures that nothing was trained on: what docs/denoising.md shows.

    .venv/bin/pip install --requirement benchmarks/models/requirements-denoising.txt    BM3D: non-commercial use only
    python -m benchmarks.models.denoising run       what is not measured yet; the CSV is written after each method
    python -m benchmarks.models.denoising report    from the CSV and the weights: the table and the strips in docs/

White Gaussian noise is added to values in 0..1 and not clipped, as papers measure; every method gets the very same
float input, a function of the set, the noise and the picture. "camera" are photos as cameras store them instead, with
the strengths CAMERA. What comes out is clipped to 0..1. Settings are chosen for each set and noise on `TUNING` training
pictures. A row whose weights have changed is measured again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from PIL import Image
from torch import Tensor

from benchmarks import tables
from benchmarks.models.denoisers import Method, classical, network
from models import checkpoint
from models.align import align
from models.checkpoint import CheckpointError, write_atomically
from models.detector import Detector
from models.preprocess import Preprocess
from training.core.errors import DataError, TrainingError
from training.core.seeds import derive, generator
from training.datasets import images as data
from training.datasets.camera_noise import photograph
from training.datasets.faces import rows_of
from training.datasets.protocols import read_lfw
from training.evaluation import markdown as pages
from training.evaluation.embedded_faces import load_detector
from training.metrics.contact_sheet import sheet
from training.metrics.reconstruction import psnr, ssim
from training.prepare.face_photos import choose, read_photo
from training.recipe.config import datasets_folder
from training.recipe.generative_config import CameraNoiseSection

RESULTS = Path("benchmarks/results/denoising.csv")
PAGE = Path("docs/denoising.md")
PICTURES = Path("docs/pictures")
DETECTOR = Path("weights/centerface")
COLUMNS = ("set", "noise", "method", "version", "setting", "pictures", "psnr", "ssim", "standard_error")

SEED, TUNING = 0, 8
CAMERA = CameraNoiseSection(blur=0.8, shot=3.0, read=15.0, jpeg=50)
GREY = Preprocess(mode="L", size=(28, 28), mean=(0,), std=(255,))
SMALL = Preprocess(size=(32, 32), mean=(0, 0, 0), std=(255, 255, 255))
FACES = Preprocess(size=(112, 112), mean=(0, 0, 0), std=(255, 255, 255))

cli = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)


@dataclass(frozen=True)
class Benchmark:
    """A set of pictures. `noises` are sigmas on the 0..255 scale, or "camera"; `networks` are names of weights.

    `load` answers `count` test pictures and `TUNING` training pictures, both float64 [N, C, H, W] in 0..1.
    """

    name: str
    noises: tuple[str, ...]
    networks: tuple[str, ...]
    count: int
    load: Callable[[int], tuple[Tensor, Tensor]]


def _pictures(images: data.ImageSet, rows: data.Indices, count: int, place: str) -> Tensor:
    """That many of those rows, drawn at random, in 0..1."""
    chosen = np.sort(np.random.default_rng(derive(SEED, "pictures", place)).permutation(rows)[:count])
    return _unit(np.asarray(images.images[chosen]))


def _unit(pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> Tensor:
    return torch.from_numpy(pixels.astype(np.float64) / 255).movedim(-1, 1)


def _classes(dataset: str, preprocess: Preprocess) -> Callable[[int], tuple[Tensor, Tensor]]:
    def load(count: int) -> tuple[Tensor, Tensor]:
        parts = []
        for split, most in (("test", count), ("train", TUNING)):
            images = data.load(dataset, split, preprocess)  # type: ignore[arg-type]
            parts.append(_pictures(images, np.arange(len(images.labels)), most, split))
        return parts[0], parts[1]

    return load


def _lfw(count: int) -> tuple[Tensor, Tensor]:
    """Aligned faces of LFW's development view, in which nobody is trained on; training faces to tune on."""
    people, detector = read_lfw(datasets_folder() / "lfw-view1"), load_detector(DETECTOR)
    order = np.random.default_rng(derive(SEED, "pictures", "lfw")).permutation(len(people.paths))
    crops: list[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]] = []
    for place in order:
        picture = read_photo(people.paths[place])
        crop = face(picture, detector) if isinstance(picture, Image.Image) else None
        crops += [] if crop is None else [crop]
        if len(crops) == count:
            break
    faces = data.load("faces", "train", FACES)
    return _unit(np.stack(crops)), _pictures(faces, rows_of(faces, "train"), TUNING, "faces")


def face(picture: Image.Image, detector: Detector) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]] | None:
    """The aligned face in the middle of a photo, uint8 [112, 112, 3]; None where there is none."""
    found = detector(picture)
    return align(picture, choose(found, picture.size, "centre").landmarks) if found else None


BENCHMARKS = (
    Benchmark("mnist", ("127.5",), ("denoiser-mnist", "vae-denoiser-mnist"), 200, _classes("mnist", GREY)),
    Benchmark("cifar10", ("15", "25", "50", "camera"), ("denoiser-photo",), 100, _classes("cifar10", SMALL)),
    Benchmark("lfw-view1", ("15", "25", "50", "camera"), ("denoiser-photo",), 50, _lfw),
)


def spoil(clean: Tensor, noise: str, *place: str) -> Tensor:
    """Add a noise of `Benchmark.noises`: a function of place, noise and the picture's number."""
    draws = (generator(SEED, "noise", *place, noise, row) for row in range(len(clean)))
    if noise == "camera":
        photos = [photograph(one[None].float(), CAMERA, draw) for one, draw in zip(clean, draws, strict=True)]
        return torch.cat(photos).double()
    white = torch.stack([torch.randn(clean.shape[1:], generator=draw, dtype=torch.float64) for draw in draws])
    return clean + white * float(noise) / 255


def tuned(method: Method, benchmark: Benchmark, noise: str, training: Tensor) -> tuple[str, Callable[[Tensor], Tensor]]:
    """The method with its best setting on the training pictures: the setting's name, and a function of noisy pictures.

    It is told the noise's standard deviation; for photos the mean one of the training pictures, since each differs.
    """
    noisy = spoil(training, noise, benchmark.name, "tuning")
    sigma = float((noisy - training).std()) if noise == "camera" else float(noise) / 255
    setting, restore = method.tuned(noisy, training, sigma)
    return setting, lambda pictures: restore(pictures, sigma)


def measure(method: Method, benchmark: Benchmark, noise: str, test: Tensor, training: Tensor) -> dict[str, object]:
    """A row of the CSV."""
    setting, restore = tuned(method, benchmark, noise, training)
    restored = restore(spoil(test, noise, benchmark.name)).clamp(0, 1)
    decibels = psnr(restored, test)
    return {
        "set": benchmark.name,
        "noise": noise,
        "method": method.name,
        "version": method.version,
        "setting": setting,
        "pictures": len(test),
        "psnr": f"{float(decibels.mean()):.3f}",
        "ssim": f"{float(ssim(restored, test).mean()):.4f}",
        "standard_error": f"{float(decibels.std()) / len(test) ** 0.5:.3f}",
    }


def methods(benchmark: Benchmark, weights: Path) -> list[Method]:
    """All for a set, in the table's order; networks whose weights are not there are left out."""
    present = [weights / name for name in benchmark.networks if (weights / name / checkpoint.CARD_FILE).is_file()]
    return [*classical(), *map(network, present)]


def _is_measured(row: dict[str, str], benchmark: Benchmark, noise: str, method: Method) -> bool:
    wanted = (benchmark.name, noise, method.name, method.version, str(benchmark.count))
    return (row["set"], row["noise"], row["method"], row["version"], row["pictures"]) == wanted


@cli.command()
def run(
    weights: Annotated[Path, typer.Option(help="A folder of models.")] = Path("weights"),
    only: Annotated[list[str] | None, typer.Option(help="Names of methods; default: all.")] = None,
) -> None:
    """Measure what is not in the CSV yet."""
    try:
        for benchmark in BENCHMARKS:
            chosen = [method for method in methods(benchmark, weights) if not only or method.name in only]
            measure_all(benchmark, chosen)
    except (TrainingError, CheckpointError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error


def measure_all(benchmark: Benchmark, chosen: Sequence[Method]) -> None:
    """Those methods with every noise, but for those that stand in the CSV."""
    known = tables.read(RESULTS)
    missing = [
        (noise, method)
        for noise in benchmark.noises
        for method in chosen
        if not any(_is_measured(row, benchmark, noise, method) for row in known)
    ]
    if not missing:
        return
    test, training = benchmark.load(benchmark.count)
    if len(test) < benchmark.count:
        raise DataError(f"{benchmark.name} has {len(test)} pictures, not {benchmark.count}")
    for noise, method in missing:
        new = measure(method, benchmark, noise, test, training)
        same = ("set", "noise", "method")
        kept = [row for row in tables.read(RESULTS) if any(row[key] != new[key] for key in same)]
        tables.write(RESULTS, COLUMNS, [*kept, new])
        typer.echo(f"{benchmark.name} {noise} {method.name} {new['setting']}: {new['psnr']} dB, {new['ssim']}")


def table(rows: Sequence[dict[str, str]]) -> str:
    """Markdown: a part for each set and noise, the methods in order."""
    order = [method.name for method in classical()] + [name for one in BENCHMARKS for name in one.networks]
    lines = []
    for benchmark in BENCHMARKS:
        for noise in benchmark.noises:
            mine = [row for row in rows if (row["set"], row["noise"]) == (benchmark.name, noise)]
            against = {row["method"]: float(row["psnr"]) for row in mine}
            for row in sorted(mine, key=lambda row: order.index(row["method"])):
                gain = f"{against[row['method']] - against['BM3D']:+.2f}" if "BM3D" in against else ""
                setting = f" ({row['setting']})" if row["setting"] else ""
                figures = [
                    f"{float(row['psnr']):.2f} ± {float(row['standard_error']):.2f}",
                    gain,
                    f"{float(row['ssim']):.3f}",
                ]
                lines.append([benchmark.name, row["noise"], row["method"] + setting, row["pictures"], *figures])
    heads = ["set", "noise (sigma of 255)", "method", "pictures", "PSNR, dB", "over BM3D, dB", "SSIM"]
    return pages.table(heads, lines)


def strips(clean: Tensor, benchmark: Benchmark, noises: Sequence[str], weights: Path, scale: int) -> bytes:
    """A PNG, a row for each noise and picture: the clean one, then each method's, in the table's order."""
    _, training = benchmark.load(1)
    rows = []
    for noise in noises:
        noisy = spoil(clean, noise, "strips")
        answers = [clean]
        for method in methods(benchmark, weights):
            _, restore = tuned(method, benchmark, noise, training)
            answers.append(restore(noisy))
        rows.append(torch.stack(answers, dim=1))  # [N, methods, C, H, W]
    pictures = torch.cat(rows).flatten(0, 1)
    pixels = (pictures.clamp(0, 1) * 255).round().to(torch.uint8).movedim(1, -1).numpy()
    return sheet(pixels, columns=rows[0].shape[1], scale=scale)


def public_faces() -> Tensor:
    """Two aligned faces in the public domain: Eileen Collins (NASA) and Grace Hopper (U.S. Navy)."""
    from matplotlib.cbook import get_sample_data
    from skimage.data import astronaut

    detector = load_detector(DETECTOR)
    photos = [Image.fromarray(astronaut()), Image.open(str(get_sample_data("grace_hopper.jpg", asfileobj=False)))]  # type: ignore[no-untyped-call]
    crops = [face(photo.convert("RGB"), detector) for photo in photos]
    return _unit(np.stack([crop for crop in crops if crop is not None]))


@cli.command()
def report(weights: Annotated[Path, typer.Option(help="A folder of models.")] = Path("weights")) -> None:
    """Rewrite the table and redraw the strips."""
    digits, _ = BENCHMARKS[0].load(6)
    write_atomically(PICTURES / "denoising-mnist.png", strips(digits, BENCHMARKS[0], ("127.5",), weights, scale=3))
    write_atomically(
        PICTURES / "denoising-photo.png",
        strips(public_faces(), BENCHMARKS[2], ("25", "50", "camera"), weights, scale=1),
    )
    pages.put(PAGE, "denoising", table(tables.read(RESULTS)), heading="Denoising")


if __name__ == "__main__":
    cli()
