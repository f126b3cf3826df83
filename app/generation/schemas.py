"""Requests and responses of generation; also the responses of denoising, reconstructing and encoding."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from app.schemas import ModelResults, OpenAIRequest, Schema

MAX_SAMPLES = 64
MAX_SEED = 2**63 - 1

Model = Annotated[str | None, Field(description="A name from /models; by default the service's default for the task.")]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
Labels = Annotated[
    list[Annotated[str, Field(max_length=128)]],
    Field(
        max_length=MAX_SAMPLES,
        fail_fast=True,
        description="Class names, repeated or comma-separated: one for all images, or one for each.",
    ),
]
Format = Annotated[
    Literal["png", "webp", "json"],
    Field(description="A grid as PNG or lossless WebP, or each image as PNG in JSON."),
]
Columns = Annotated[
    int | None, Field(ge=1, le=MAX_SAMPLES, description="The grid's columns; by default about as many as rows.")
]
PictureFormat = Annotated[
    Literal["png", "json"], Field(description="A single image as PNG, or a list of PNG images in JSON.")
]
# The limit exceeds the values of any prior or encoder; its square fits into float32.
Latent = Annotated[
    list[Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False, strict=True)]],
    Field(min_length=1, max_length=4096, fail_fast=True),
]


class GenerateParams(Schema):
    """The query of `GET /generate`."""

    model: Model = None
    n: Annotated[int, Field(ge=1, le=MAX_SAMPLES, description="How many samples.")] = 16
    seed: Seed | None = Field(None, description="By default random; the response has it in `X-Seed`.")
    label: Labels = Field([], description="By default all classes of a conditional model in turn.")
    truncation: Annotated[float, Field(gt=0, le=2, allow_inf_nan=False)] = Field(
        1.0, description="Factor of the noise: smaller values give more typical, larger ones more varied samples."
    )
    format: Format = "png"
    grid: Columns = None


class LatentsRequest(Schema):
    """The body of `POST /generate`: a latent vector of the model's width for each image."""

    model: Model = None
    latents: Annotated[list[Latent], Field(min_length=1, max_length=MAX_SAMPLES, fail_fast=True)]
    labels: Labels = Field([], description="By default all classes of a conditional model in turn.")
    format: Format = "png"
    grid: Annotated[Columns, Field(strict=True)] = None


class InterpolateParams(Schema):
    """The query of `GET /generate/interpolate`."""

    model: Model = None
    from_seed: Seed
    to_seed: Seed
    label: Labels = Field([], description="One class; required for a conditional model.")
    steps: Annotated[int, Field(ge=2, le=MAX_SAMPLES, description="The number of images, including both ends.")] = 8
    format: Literal["png", "webp"] = Field("png", description="A strip as PNG, or an animated WebP, lossless.")


class GeneratedImage(Schema):
    """A sample as PNG in base64, and its class if the model is conditional."""

    b64_json: str
    label: str | None = None


class GenerateResponse(Schema):
    """OpenAI's list of images.

    `created` is in seconds since 1970; 0 for a given seed or latents, so that the response is the same byte for byte.
    `seed` is null for latents.
    """

    created: int
    data: list[GeneratedImage]
    model: str
    version: str
    seed: int | None = None


class ImagesRequest(OpenAIRequest):
    """OpenAI's request for images; `prompt` is a class label, or a label for each image.

    `seed` is an extension: the same seed gives the same images.
    """

    prompt: Annotated[str, Field(max_length=1024)] = Field(
        description="For a conditional model a label, or `n` comma-separated labels; otherwise empty.",
        examples=["2,0,2,6"],
    )
    model: Model = None
    n: Annotated[int, Field(ge=1, le=MAX_SAMPLES, strict=True)] | None = Field(
        None, description="The number of images; by default 1."
    )
    size: Annotated[str, Field(pattern=r"^(auto|[0-9]{1,5}x[0-9]{1,5})$")] | None = Field(
        None, description="Width and height as `28x28`; must be the model's size, or `auto`."
    )
    response_format: Literal["b64_json", "url"] | None = Field(
        None, description="`url`: data URIs. By default `b64_json`."
    )
    seed: Annotated[Seed, Field(strict=True)] | None = None
    user: str | None = Field(None, description="Not used.")


class ListedImage(Schema):
    """A sample as PNG, in base64 or as a data URI, and its class if the model is conditional."""

    b64_json: str | None = None
    url: str | None = None
    label: str | None = None


class ImagesResponse(Schema):
    """OpenAI's list of images; `created` and `seed` are those of `GET /generate?format=json`."""

    created: int
    data: list[ListedImage]
    output_format: Literal["png"] = "png"
    size: str = Field(examples=["28x28"])
    model: str
    version: str
    seed: int


class DenoiseParams(Schema):
    """The query of `POST /denoise`."""

    model: Model = None
    strength: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = Field(
        1.0, description="Weight of the denoised image in the result, 0..1; the rest is the input image."
    )
    format: PictureFormat = "png"


class EncodeParams(Schema):
    """The query of `POST /encode`."""

    model: Model = None
    label: Labels = Field([], description="Required for a conditional model: a class for all images, or for each.")


class ReconstructParams(EncodeParams):
    """The query of `POST /reconstruct`."""

    format: PictureFormat = "png"


class Reconstructed(Schema):
    """A reconstructed image as PNG in base64, of the network's size."""

    index: int
    width: int
    height: int
    b64_json: str


class Denoised(Reconstructed):
    """A denoised image as PNG in base64, of the input's size.

    `psnr` is its peak signal-to-noise ratio against the reference in dB, `psnr_before` that of the input: null without
    a reference, and if all pixels are equal.
    """

    psnr: float | None = None
    psnr_before: float | None = None


class Encoded(Schema):
    """An image's latent vector, which `POST /generate` decodes; of a distribution, the mean."""

    index: int
    latent: list[float]


class DenoiseResponse(ModelResults[Denoised]):
    """The results in the order of the request's images."""


class ReconstructResponse(ModelResults[Reconstructed]):
    """The results in the order of the request's images."""


class EncodeResponse(ModelResults[Encoded]):
    """The results in the order of the request's images."""
