"""The use cases about new pictures: samples of a seed, what lies at given latents, the way from one sample to another.

A sample is a function of the weights, the seed, its place, its label and the truncation: neither of how many are drawn
nor of what else is under way.
"""

from __future__ import annotations

import base64
import math
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from app.dependencies import Timings
from app.errors import Unprocessable
from app.generation.schemas import (
    GeneratedImage,
    GenerateParams,
    GenerateResponse,
    ImagesRequest,
    ImagesResponse,
    InterpolateParams,
    LatentsRequest,
    ListedImage,
)
from app.images import encoding
from app.images.encoding import PNG, WEBP, File, Pixels
from app.inference import class_labels
from app.inference.loaded_model import LoadedModel
from app.inference.predictor import Inference
from app.inference.submodels import DECODER
from models import runtime
from models.card import ModelCard
from models.generative import latents
from models.registry import configure

T = TypeVar("T")

# A drawn seed is told in JSON, whose readers often hold numbers as float64: 2**53 is what those hold exactly.
DRAWN_SEEDS = 2**53
FRAME_MS = 100


@dataclass(frozen=True)
class _Samples:
    """Pictures uint8 [N, H, W, C], and their classes."""

    card: ModelCard
    pixels: Pixels
    classes: list[int] | None


class Generation:
    """Draw."""

    def __init__(self, inference: Inference):
        self._inference = inference
        self._engine = inference.engine

    async def generate(self, params: GenerateParams, known: str | None, timings: Timings) -> File:
        """Samples of a seed; no content where `known`, an If-None-Match, names just these.

        Raises:
            Unprocessable: labels that the model has not. UnknownModel, Overloaded, NotReady, DeadlineExceeded.
        """
        model = await self._engine.part(self._engine.card(params.model, "generate"), DECODER)
        classes = _in_turn(model.card, params.label, params.n)
        if params.seed is None:
            seed, created = secrets.randbelow(DRAWN_SEEDS), int(time.time())
            headers = {"X-Seed": str(seed), "Cache-Control": "no-store"}
        else:
            seed, created = params.seed, 0
            asked = params.model_dump(exclude={"model", "label"}) | {"classes": classes}
            headers = {"X-Seed": str(seed), **_kept(model, "generate", asked)}
            if encoding.is_known(headers["ETag"], known):
                return File(None, PNG, headers)
        noise = _noise(model.card, seed, params.n)
        samples = await self._drawn(model, noise * params.truncation, classes, timings)
        if params.format == "json":
            return await self._listed(samples, created, seed, headers, timings)
        return await self._sheet(samples, params.format, params.grid, headers, timings)

    async def images(self, asked: ImagesRequest, timings: Timings) -> ImagesResponse:
        """Samples, asked for in OpenAI's words.

        Raises:
            Unprocessable: a prompt that is no label of the model, or a size that is not its own; as `generate`.
        """
        model = await self._engine.part(self._engine.card(asked.model, "generate"), DECODER)
        card, count = model.card, asked.n or 1
        classes = class_labels.needed(card, [asked.prompt] if asked.prompt.strip() else [], count)
        size = _own_size(card, asked.size)
        seed = secrets.randbelow(DRAWN_SEEDS) if asked.seed is None else asked.seed
        samples = await self._drawn(model, _noise(card, seed, count), classes, timings)
        texts = await self._texts(samples, timings)
        names = class_labels.names(card, classes, count)
        images = [_listed(*pair, asked.response_format) for pair in zip(texts, names, strict=True)]
        created = int(time.time()) if asked.seed is None else 0
        return ImagesResponse(created=created, data=images, size=size, model=card.name, version=card.version, seed=seed)

    async def decode(self, sent: LatentsRequest, timings: Timings) -> File:
        """What lies at latents that the caller chose, of any model that decodes.

        Raises:
            Unprocessable: another width than the model's; as `generate`.
        """
        card = self._engine.card(sent.model, "generate", "reconstruct", "denoise")
        model = await self._engine.part(card, DECODER)
        width = _width(card)
        if wrong := [len(latent) for latent in sent.latents if len(latent) != width]:
            raise Unprocessable(f"a latent of {wrong[0]} numbers was sent; those of {card.name} have {width}")
        classes = _in_turn(card, sent.labels, len(sent.latents))
        samples = await self._drawn(model, torch.tensor(sent.latents, dtype=torch.float32), classes, timings)
        if sent.format == "json":
            return await self._listed(samples, 0, None, {}, timings)
        return await self._sheet(samples, sent.format, sent.grid, {}, timings)

    async def interpolate(self, params: InterpolateParams, known: str | None, timings: Timings) -> File:
        """The way from the first sample of one seed to the first of another; `known` as for `generate`.

        Raises:
            Unprocessable: no label for a conditional model, or several; as `generate`.
        """
        model = await self._engine.part(self._engine.card(params.model, "generate"), DECODER)
        classes = class_labels.needed(model.card, params.label, 1)
        headers = _kept(model, "interpolate", params.model_dump(exclude={"model", "label"}) | {"classes": classes})
        if encoding.is_known(headers["ETag"], known):
            return File(None, PNG, headers)
        first, last = (latents(seed, 0, _width(model.card)) for seed in (params.from_seed, params.to_seed))
        way = between(first, last, params.steps)
        samples = await self._drawn(model, way, None if classes is None else classes * params.steps, timings)
        if params.format == "png":
            return await self._sheet(samples, "png", params.steps, headers, timings)
        content = await self._encoded(lambda: encoding.animation(list(samples.pixels), FRAME_MS), timings)
        return File(content, WEBP, headers)

    async def _drawn(self, model: LoadedModel, latent: Tensor, classes: list[int] | None, timings: Timings) -> _Samples:
        items = torch.cat([latent, class_labels.one_hot(model.card, classes, len(latent))], dim=1)
        pictures = await self._inference.in_time(self._inference.run(model, items, timings))
        return _Samples(model.card, model.card.preprocess.denormalise(pictures).numpy(), classes)

    async def _sheet(
        self, samples: _Samples, form: str, columns: int | None, headers: Mapping[str, str], timings: Timings
    ) -> File:
        pixels = encoding.grid(samples.pixels, columns or math.ceil(math.sqrt(len(samples.pixels))))
        encode, media_type = (encoding.webp, WEBP) if form == "webp" else (encoding.png, PNG)
        return File(await self._encoded(lambda: encode(pixels), timings), media_type, headers)

    async def _listed(
        self, samples: _Samples, created: int, seed: int | None, headers: Mapping[str, str], timings: Timings
    ) -> File:
        card = samples.card
        texts = await self._texts(samples, timings)
        names = class_labels.names(card, samples.classes, len(texts))
        images = [GeneratedImage(b64_json=text, label=name) for text, name in zip(texts, names, strict=True)]
        answer = GenerateResponse(created=created, data=images, model=card.name, version=card.version, seed=seed)
        return encoding.document(answer, headers)

    async def _texts(self, samples: _Samples, timings: Timings) -> list[str]:
        """Each sample as PNG in base64."""
        return await self._encoded(
            lambda: [base64.b64encode(encoding.png(one)).decode() for one in samples.pixels], timings
        )

    async def _encoded(self, function: Callable[[], T], timings: Timings) -> T:
        started = time.perf_counter()
        answer = await self._engine.decoded(function)
        timings.record("encode", time.perf_counter() - started)
        return answer


def between(start: Tensor, end: Tensor, steps: int) -> Tensor:
    """Points [steps, D] from `start` to `end` [D], both among them, evenly along the great circle through them.

    The length of Gaussian noise in D dimensions is close to sqrt(D). On a straight line the middle of two samples is
    shorter by sqrt(2), where the network saw next to nothing in training; on the arc every point is as long as a
    sample (White, "Sampling Generative Networks", 2016).
    """
    first, last = start.double().numpy(), end.double().numpy()
    cosine = first @ last / (np.linalg.norm(first) * np.linalg.norm(last))
    angle = math.acos(min(1.0, max(-1.0, float(cosine))))
    share = np.linspace(0, 1, steps)[:, None]
    # Two that point one way have no circle between them, and the straight line is as good.
    straight = math.sin(angle) < 1e-9
    left = 1 - share if straight else np.sin((1 - share) * angle) / math.sin(angle)
    right = share if straight else np.sin(share * angle) / math.sin(angle)
    return torch.from_numpy((left * first + right * last).astype(np.float32))


def _width(card: ModelCard) -> int:
    width: int = configure(card.architecture, card.config).latent
    return width


def _noise(card: ModelCard, seed: int, count: int) -> Tensor:
    """The latents of a seed's first samples, [count, width]."""
    return torch.stack([latents(seed, index, _width(card)) for index in range(count)])


def _listed(text: str, label: str | None, form: Literal["b64_json", "url"] | None) -> ListedImage:
    if form == "url":
        return ListedImage(url=f"data:{PNG};base64,{text}", label=label)
    return ListedImage(b64_json=text, label=label)


def _own_size(card: ModelCard, asked: str | None) -> str:
    _, height, width = card.preprocess.shape
    own = f"{width}x{height}"
    if asked not in (None, "auto", own):
        raise Unprocessable(f"{card.name} draws pictures of {own}, not of {asked}")
    return own


def _in_turn(card: ModelCard, sent: list[str], count: int) -> list[int] | None:
    """The classes asked for; where none are, those of a conditional model in turn."""
    classes = class_labels.chosen(card, sent, count)
    if classes is None and card.classes:
        return [index % len(card.classes) for index in range(count)]
    return classes


def _kept(model: LoadedModel, call: str, asked: dict[str, object]) -> dict[str, str]:
    """Headers of an answer that is the same whenever it is asked for; other weights under the name change the tag."""
    parts = model.card.sha256, model.runtime, runtime.signature(), np.__version__, call, asked
    return {"ETag": encoding.tag(*parts), "Cache-Control": "no-cache"}
