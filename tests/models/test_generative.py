"""Latents as a function of seed and index, and the submodels that are served."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats  # type: ignore[import-untyped]
from torch import nn

from models.autoencoder import Autoencoder, AutoencoderConfig
from models.denoiser import Denoiser, DenoiserConfig
from models.generative import (
    MAX_INDEX,
    MAX_SEED,
    DecoderSubmodel,
    EncoderSubmodel,
    ReconstructionSubmodel,
    latents,
    with_label_planes,
)


def test_latents_are_standard_normal() -> None:
    values = torch.stack([latents(7, index, 40) for index in range(500)]).double().numpy()
    assert stats.kstest(values.ravel(), "norm").pvalue > 0.001
    # Neither the samples of a seed nor the dimensions of a sample are correlated.
    assert np.abs(np.corrcoef(values.T) - np.eye(40)).max() < 5 / np.sqrt(500)
    assert abs(np.corrcoef(values[1:].ravel(), values[:-1].ravel())[0, 1]) < 5 / np.sqrt(500 * 40)


def test_latents_of_a_seed_never_change() -> None:
    # Users keep seeds to generate their images again.
    expected = torch.tensor([-0.6768542528152466, -0.20418637990951538, -1.0456126928329468, -0.44512939453125])
    assert torch.equal(latents(2026, 3, 4), expected)
    assert latents(2026, 3, 4).dtype == torch.float32


@given(st.integers(0, MAX_SEED), st.integers(0, MAX_INDEX))
def test_latents_differ_for_every_seed_and_index(seed: int, index: int) -> None:
    drawn = latents(seed, index, 8)
    assert torch.equal(drawn, latents(seed, index, 8))
    neighbours = {((seed + 1) % (MAX_SEED + 1), index), (seed, (index + 1) % (MAX_INDEX + 1)), (index, seed % 2**32)}
    for other in neighbours - {(seed, index)}:
        assert not torch.equal(drawn, latents(*other, 8))


def test_large_seed_is_not_split_into_words() -> None:
    # Used as entropy, the words of 2**32 and 1 would be 0, 1, 1, as for the seed 0 with the index 1 + 2**32.
    assert not torch.equal(latents(2**32, 1, 4), latents(0, 1, 4))
    assert not torch.equal(latents(5 + 2**32 * 6, 0, 4), latents(5, 6, 4))


@pytest.mark.parametrize(
    ("seed", "index", "dimensions"), [(-1, 0, 1), (2**64, 0, 1), (0, -1, 1), (0, 2**32, 1), (0, 0, 0)]
)
def test_invalid_seed_or_index_is_refused(seed: int, index: int, dimensions: int) -> None:
    with pytest.raises(ValueError, match="expected a seed"):
        latents(seed, index, dimensions)


def network() -> Autoencoder:
    torch.manual_seed(0)
    config = AutoencoderConfig(image_size=8, latent=3, num_classes=2, widths=(4,), hidden=0, blocks=0)
    return Autoencoder(config).eval()


def test_submodels_are_the_methods_with_one_tensor() -> None:
    module = network()
    images, labels = torch.rand(5, 1, 8, 8), torch.eye(2)[[0, 1, 1, 0, 1]]
    with torch.inference_mode():
        codes = module.embed(images, labels)
        planes = with_label_planes(images, labels)
        assert planes.shape == (5, 3, 8, 8)
        assert torch.equal(planes[:, 1:].mean(dim=(2, 3)), labels)
        assert torch.equal(EncoderSubmodel(module)(planes), codes)
        assert torch.equal(DecoderSubmodel(module)(torch.cat([codes, labels], dim=1)), module.decode(codes, labels))
        assert torch.equal(ReconstructionSubmodel(module)(planes), module(images, labels))


def test_submodels_can_be_exported_by_torch() -> None:
    module, planes = network(), torch.rand(2, 3, 8, 8)
    for submodel, batch in ((ReconstructionSubmodel(module), planes), (DecoderSubmodel(module), torch.randn(2, 5))):
        program = torch.export.export(submodel, (batch,))
        torch.testing.assert_close(program.module()(batch), submodel(batch))


@pytest.mark.parametrize("submodel", [DecoderSubmodel, EncoderSubmodel, ReconstructionSubmodel])
def test_network_without_the_method_is_refused(submodel: type[nn.Module]) -> None:
    with pytest.raises(ValueError, match="Denoiser does not"):
        submodel(Denoiser(DenoiserConfig(widths=(4,), blocks=1)))
