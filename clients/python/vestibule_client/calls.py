"""The calls about pictures and models, each as a function of its arguments; the clients' methods are made of these."""

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
    pictures: Pictures, *, model: str | None = None, top_k: int = 5, tta: bool = False
) -> Call[Classification]:
    """What is in a picture, or in each of several? `tta`: test-time augmentation, where the model has one."""
    query = {"model": model, "top_k": top_k, "tta": tta}
    return Call("POST", "/classify", Classification, query=query, files=tuple(parts("file", pictures)))


def classify_sequence(pictures: Pictures, *, model: str | None = None) -> Call[DigitStrings]:
    """Which string of digits is in a picture, or in each of several? By a model of the ten digits."""
    query = {"model": model, "sequence": True}
    return Call("POST", "/classify", DigitStrings, query=query, files=tuple(parts("file", pictures)))


def detect(
    pictures: Pictures, *, model: str | None = None, threshold: float = 0.5, min_face: float | None = None
) -> Call[Detection]:
    """Where are faces, and how good are they? Those less sure than `threshold` are not told of.

    `min_face` is the side in pixels of the smallest face to look for; None: the service's default.
    """
    query = {"model": model, "threshold": threshold, "min_face": min_face}
    return Call("POST", "/faces/detect", Detection, query=query, files=tuple(parts("file", pictures)))


def embed(pictures: Pictures, *, model: str | None = None, aligned: bool = False) -> Call[Embeddings]:
    """Each picture's most prominent face as a vector; `aligned`: the pictures are aligned faces already."""
    query = {"model": model, "aligned": aligned}
    return Call("POST", "/embed", Embeddings, query=query, files=tuple(parts("file", pictures)))


def verify(source: Picture, target: Picture, *, model: str | None = None, fmr: float = 0.001) -> Call[Verification]:
    """Do two pictures show one person, at this false match rate?"""
    files = (("source", content(source)), ("target", content(target)))
    return Call("POST", "/verify", Verification, query={"model": model, "fmr": fmr}, files=files)


def verify_embeddings(
    source: Sequence[float], targets: Iterable[Sequence[float]], *, model: str | None = None, fmr: float = 0.001
) -> Call[EmbeddingVerification]:
    """The same of a vector against others that were made by the same model."""
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
    """New pictures in one grid of `grid` columns; the same seed draws the same bytes.

    `label` names a class, or one for each of `n`. `truncation` multiplies the noise: less is more typical.
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
    """New pictures one by one, each as PNG."""
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
    """The pictures at points of the latent space, such as `encode` answers, in one grid."""
    return Call("POST", "/generate", File, json=_points(latents, model, label) | {"grid": grid, "format": format})


def decode_each(
    latents: Iterable[Sequence[float]], *, model: str | None = None, label: Labels = ()
) -> Call[GeneratedImages]:
    """The same one by one, each as PNG."""
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
    """The way from the first sample of one seed to that of another: a strip as PNG, or a film as WebP."""
    query = {"model": model, "from_seed": from_seed, "to_seed": to_seed, "steps": steps, "format": format}
    return Call("GET", "/generate/interpolate", File, query=query | {"label": _labels(label)})


def denoise(
    pictures: Pictures, *, model: str | None = None, strength: float = 1.0, reference: Pictures | None = None
) -> Call[DenoisedImages]:
    """Pictures without their noise, each as PNG of its own size; with a clean `reference` of each, how near that is.

    `strength`, 0..1, is how much of the answer is the cleaned picture.
    """
    files = parts("file", pictures) + ([] if reference is None else parts("reference", reference))
    query = {"model": model, "strength": strength, "format": "json"}
    return Call("POST", "/denoise", DenoisedImages, query=query, files=tuple(files))


def reconstruct(pictures: Pictures, *, model: str | None = None, label: Labels = ()) -> Call[ReconstructedImages]:
    """What is left of pictures that went through the latent space, each as PNG."""
    query = {"model": model, "label": _labels(label), "format": "json"}
    return Call("POST", "/reconstruct", ReconstructedImages, query=query, files=tuple(parts("file", pictures)))


def encode(pictures: Pictures, *, model: str | None = None, label: Labels = ()) -> Call[Encodings]:
    """Pictures as points of the latent space."""
    query = {"model": model, "label": _labels(label)}
    return Call("POST", "/encode", Encodings, query=query, files=tuple(parts("file", pictures)))


def models() -> Call[ModelList]:
    """Every model that can be asked for."""
    return Call("GET", "/models", ModelList)


def model(name: str) -> Call[ModelDetail]:
    """One model's card, and how it runs."""
    return Call("GET", "/models/{name}", ModelDetail, {"name": name})


def reload(name: str) -> Call[ModelReloaded]:
    """Let the service read a model's files anew; requests under way end with what was there."""
    return Call("POST", "/models/{name}/reload", ModelReloaded, {"name": name})


def live() -> Call[Health]:
    """The process answers."""
    return Call("GET", "/health/live", Health)


def ready() -> Call[Health]:
    """The default models are loaded; `NotReady` is raised where they are not."""
    return Call("GET", "/health/ready", Health)


def _labels(label: Labels) -> list[str]:
    return [str(one) for one in ([label] if isinstance(label, str | int) else label)]


def _points(latents: Iterable[Sequence[float]], model: str | None, label: Labels) -> dict[str, object]:
    return {"latents": [list(latent) for latent in latents], "model": model, "labels": _labels(label)}
