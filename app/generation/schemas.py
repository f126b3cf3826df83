"""What goes in and out where pictures are made or cleaned, as typed models."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from app.schemas import Failed, OpenAIRequest, Schema

MOST_SAMPLES = 64
MAX_SEED = 2**63 - 1

Model = Annotated[str | None, Field(description="A name from /models; left out: the service's default for this.")]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
Labels = Annotated[
    list[Annotated[str, Field(max_length=128)]],
    Field(
        max_length=MOST_SAMPLES,
        fail_fast=True,
        description="Names of classes, repeated or joined by commas: one, or one for each.",
    ),
]
Format = Annotated[
    Literal["png", "webp", "json"],
    Field(description="A grid as PNG or as lossless WebP; or each picture as PNG in JSON."),
]
Columns = Annotated[
    int | None, Field(ge=1, le=MOST_SAMPLES, description="The grid's columns; left out: about as many as rows.")
]
PictureFormat = Annotated[
    Literal["png", "json"], Field(description="One picture as PNG, or a list of them as PNG in JSON.")
]
# Beyond any prior or encoder, and within what float32 can square.
Latent = Annotated[
    list[Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False, strict=True)]],
    Field(min_length=1, max_length=4096, fail_fast=True),
]


class GenerateParams(Schema):
    """The query of `GET /generate`."""

    model: Model = None
    n: Annotated[int, Field(ge=1, le=MOST_SAMPLES, description="How many samples.")] = 16
    seed: Seed | None = Field(None, description="Left out: drawn at random, and told in `X-Seed`.")
    label: Labels = Field([], description="Left out for a conditional model: its classes in turn.")
    truncation: Annotated[float, Field(gt=0, le=2, allow_inf_nan=False)] = Field(
        1.0, description="What the noise is multiplied by: less is more typical, more is more varied."
    )
    format: Format = "png"
    grid: Columns = None


class LatentsRequest(Schema):
    """The body of `POST /generate`: a point of the latent space for each picture, of the model's own width."""

    model: Model = None
    latents: Annotated[list[Latent], Field(min_length=1, max_length=MOST_SAMPLES, fail_fast=True)]
    labels: Labels = Field([], description="Left out for a conditional model: its classes in turn.")
    format: Format = "png"
    grid: Annotated[Columns, Field(strict=True)] = None


class InterpolateParams(Schema):
    """The query of `GET /generate/interpolate`."""

    model: Model = None
    from_seed: Seed
    to_seed: Seed
    label: Labels = Field([], description="One class, which a conditional model needs.")
    steps: Annotated[int, Field(ge=2, le=MOST_SAMPLES, description="Pictures, both ends among them.")] = 8
    format: Literal["png", "webp"] = Field("png", description="A strip as PNG, or an animated WebP, lossless.")


class GeneratedImage(Schema):
    """A sample as PNG in base64, and its class where the model is conditional."""

    b64_json: str
    label: str | None = None


class GenerateResponse(Schema):
    """OpenAI's list of images.

    `created` is in seconds since 1970, and 0 where the caller fixed what is drawn: then every byte is the same again.
    `seed` is null where latents were sent.
    """

    created: int
    data: list[GeneratedImage]
    model: str
    version: str
    seed: int | None = None


class ImagesRequest(OpenAIRequest):
    """OpenAI's request for images; `prompt` names what a model draws: a class, or one for each picture.

    `seed` is not OpenAI's: with it the same pictures are answered again.
    """

    prompt: Annotated[str, Field(max_length=1024)] = Field(
        description="Of a conditional model: a label, or `n` of them joined by commas. Of any other: empty.",
        examples=["2,0,2,6"],
    )
    model: Model = None
    n: Annotated[int, Field(ge=1, le=MOST_SAMPLES, strict=True)] | None = Field(None, description="Left out: 1.")
    size: Annotated[str, Field(pattern=r"^(auto|[0-9]{1,5}x[0-9]{1,5})$")] | None = Field(
        None, description="Width and height as `28x28`: only the model's own, which is also `auto`."
    )
    response_format: Literal["b64_json", "url"] | None = Field(
        None, description="`url`: data URIs, which nothing has to be fetched for. Left out: `b64_json`."
    )
    seed: Annotated[Seed, Field(strict=True)] | None = None
    user: str | None = Field(None, description="Not used.")


class ListedImage(Schema):
    """A sample as PNG, in base64 or as a data URI, and its class where the model is conditional."""

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
        1.0, description="How much of the answer is the cleaned picture, 0..1; the rest is the picture as sent."
    )
    format: PictureFormat = "png"


class Denoised(Schema):
    """A picture as PNG in base64, of the size that was sent.

    `psnr` is its peak signal-to-noise ratio against the reference in dB, `psnr_before` that of the picture as sent:
    null without a reference, and where not one pixel differs.
    """

    index: int
    width: int
    height: int
    b64_json: str
    psnr: float | None = None
    psnr_before: float | None = None


class DenoiseResponse(Schema):
    """The pictures in the order they were sent."""

    model: str
    version: str
    data: list[Denoised | Failed]


class ReconstructParams(Schema):
    """The query of `POST /reconstruct`."""

    model: Model = None
    label: Labels = Field([], description="What a conditional model needs: a class for all pictures, or for each.")
    format: PictureFormat = "png"


class Reconstructed(Schema):
    """A picture as PNG in base64, of the network's size."""

    index: int
    width: int
    height: int
    b64_json: str


class ReconstructResponse(Schema):
    """The pictures in the order they were sent."""

    model: str
    version: str
    data: list[Reconstructed | Failed]


class EncodeParams(Schema):
    """The query of `POST /encode`."""

    model: Model = None
    label: Labels = Field([], description="What a conditional model needs: a class for all pictures, or for each.")


class Encoded(Schema):
    """A picture as a point of the latent space; `POST /generate` draws it again. Of a distribution, the mean."""

    index: int
    latent: list[float]


class EncodeResponse(Schema):
    """The pictures in the order they were sent."""

    model: str
    version: str
    data: list[Encoded | Failed]
