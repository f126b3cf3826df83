"""The calls for images and models as functions of their arguments, from which the clients' methods are built."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from vestibule_client.answers import (
    Classification,
    DenoisedImages,
    Detection,
    DigitStrings,
    Embeddings,
    EmbeddingVerification,
    Encodings,
    GeneratedImages,
    Health,
    ModelDetail,
    ModelList,
    ModelReloaded,
    ReconstructedImages,
    Verification,
)
from vestibule_client.call import Call
from vestibule_client.files import File
from vestibule_client.pictures import Picture, Pictures, content, parts

Format = Literal["png", "webp"]
Labels = str | int | Iterable[str | int]


def classify(
    pictures: Pictures, *, model: str | None = None, top_k: int = 5, tta: bool = False, reject: float | None = None
) -> Call[Classification]:
    """Classify an image, or each of several. `tta` uses test-time augmentation if the model has it.

    With `reject`, 0.001 to 0.5, each result says whether the image is `rejected` as one of none of the model's classes;
    `reject` is the share of images of its classes that may be rejected by mistake.
    """
    query = {"model": model, "top_k": top_k, "tta": tta, "reject": reject}
    return Call("POST", "/classify", Classification, query=query, files=tuple(parts("file", pictures)))


def classify_sequence(pictures: Pictures, *, model: str | None = None) -> Call[DigitStrings]:
    """Read the string of digits in an image, or in each of several, with a model of the ten digits."""
    query = {"model": model, "sequence": True}
    return Call("POST", "/classify", DigitStrings, query=query, files=tuple(parts("file", pictures)))


def detect(
    pictures: Pictures, *, model: str | None = None, threshold: float = 0.5, min_face: float | None = None
) -> Call[Detection]:
    """Detect faces with a confidence of at least `threshold`, and measure their quality.

    `min_face` is the side in pixels of the smallest face to detect; None: the service's default.
    """
    query = {"model": model, "threshold": threshold, "min_face": min_face}
    return Call("POST", "/faces/detect", Detection, query=query, files=tuple(parts("file", pictures)))


def embed(pictures: Pictures, *, model: str | None = None, aligned: bool = False) -> Call[Embeddings]:
    """Embed the most prominent face of each image; with `aligned` the images are aligned faces.

    With a classifier as `model`, embed each whole image.
    """
    query = {"model": model, "aligned": aligned}
    return Call("POST", "/embed", Embeddings, query=query, files=tuple(parts("file", pictures)))


def verify(source: Picture, target: Picture, *, model: str | None = None, fmr: float = 0.001) -> Call[Verification]:
    """Decide whether two images show the same person, at this false match rate."""
    files = (("source", content(source)), ("target", content(target)))
    return Call("POST", "/verify", Verification, query={"model": model, "fmr": fmr}, files=files)


def verify_embeddings(
    source: Sequence[float], targets: Iterable[Sequence[float]], *, model: str | None = None, fmr: float = 0.001
) -> Call[EmbeddingVerification]:
    """Compare a vector with others of the same model, at this false match rate."""
    body = {"source": list(source), "targets": [list(target) for target in targets]}
    query = {"model": model, "fmr": fmr}
    return Call("POST", "/verify/embeddings", EmbeddingVerification, query=query, json=body)


def generate(
    *,
    model: str | None = None,
    n: int = 16,
    seed: int | None = None,
    label: Labels = (),
    truncation: float = 1.0,
    grid: int | None = None,
    format: Format = "png",
) -> Call[File]:
    """Generate images in one grid of `grid` columns; the same seed gives the same bytes.

    `label` is a class for all, or a class for each of `n` images. `truncation` multiplies the noise; lower values give
    more typical images.
    """
    query = {"model": model, "n": n, "seed": seed, "truncation": truncation, "grid": grid, "format": format}
    return Call("GET", "/generate", File, query=query | {"label": _labels(label)})


def generate_each(
    *,
    model: str | None = None,
    n: int = 16,
    seed: int | None = None,
    label: Labels = (),
    truncation: float = 1.0,
) -> Call[GeneratedImages]:
    """Generate images as separate PNGs."""
    query = {"model": model, "n": n, "seed": seed, "truncation": truncation, "format": "json"}
    return Call("GET", "/generate", GeneratedImages, query=query | {"label": _labels(label)})


def decode(
    latents: Iterable[Sequence[float]],
    *,
    model: str | None = None,
    label: Labels = (),
    grid: int | None = None,
    format: Format = "png",
) -> Call[File]:
    """Decode latents, for example from `encode`, to images in one grid."""
    return Call("POST", "/generate", File, json=_points(latents, model, label) | {"grid": grid, "format": format})


def decode_each(
    latents: Iterable[Sequence[float]], *, model: str | None = None, label: Labels = ()
) -> Call[GeneratedImages]:
    """Decode latents to separate PNGs."""
    return Call("POST", "/generate", GeneratedImages, json=_points(latents, model, label) | {"format": "json"})


def interpolate(
    from_seed: int,
    to_seed: int,
    *,
    model: str | None = None,
    label: Labels = (),
    steps: int = 8,
    format: Format = "png",
) -> Call[File]:
    """Interpolate from the first sample of one seed to that of another: a strip as PNG, or an animation as WebP."""
    query = {"model": model, "from_seed": from_seed, "to_seed": to_seed, "steps": steps, "format": format}
    return Call("GET", "/generate/interpolate", File, query=query | {"label": _labels(label)})


def denoise(
    pictures: Pictures, *, model: str | None = None, strength: float = 1.0, reference: Pictures | None = None
) -> Call[DenoisedImages]:
    """Denoise images, each as PNG of its size; with a clean `reference` of each, also measure the result.

    `strength`, 0..1, is the share of the denoised image in the result.
    """
    files = parts("file", pictures) + ([] if reference is None else parts("reference", reference))
    query = {"model": model, "strength": strength, "format": "json"}
    return Call("POST", "/denoise", DenoisedImages, query=query, files=tuple(files))


def reconstruct(pictures: Pictures, *, model: str | None = None, label: Labels = ()) -> Call[ReconstructedImages]:
    """Reconstruct images from their latents, each as PNG."""
    query = {"model": model, "label": _labels(label), "format": "json"}
    return Call("POST", "/reconstruct", ReconstructedImages, query=query, files=tuple(parts("file", pictures)))


def encode(pictures: Pictures, *, model: str | None = None, label: Labels = ()) -> Call[Encodings]:
    """Encode images as latents."""
    query = {"model": model, "label": _labels(label)}
    return Call("POST", "/encode", Encodings, query=query, files=tuple(parts("file", pictures)))


def models() -> Call[ModelList]:
    """List the available models."""
    return Call("GET", "/models", ModelList)


def model(name: str) -> Call[ModelDetail]:
    """Return a model's card and runtime."""
    return Call("GET", "/models/{name}", ModelDetail, {"name": name})


def reload(name: str) -> Call[ModelReloaded]:
    """Reload a model's files; requests in progress finish with the previous weights."""
    return Call("POST", "/models/{name}/reload", ModelReloaded, {"name": name})


def live() -> Call[Health]:
    """Check that the process responds."""
    return Call("GET", "/health/live", Health)


def ready() -> Call[Health]:
    """Check that the default models are loaded; raises `NotReady` otherwise."""
    return Call("GET", "/health/ready", Health)


def _labels(label: Labels) -> list[str]:
    return [str(value) for value in ([label] if isinstance(label, str | int) else label)]


def _points(latents: Iterable[Sequence[float]], model: str | None, label: Labels) -> dict[str, object]:
    return {"latents": [list(latent) for latent in latents], "model": model, "labels": _labels(label)}
