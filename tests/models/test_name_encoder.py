"""The name encoder: folding of letters, unit vectors, independence of padding, dependence on order."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.name_encoder import ALPHABET, PADDING, UNKNOWN, VARIANTS, WordEncoder, encode, fold
from tests.models.helpers import assert_all_gradients


def small() -> WordEncoder:
    torch.manual_seed(0)
    return WordEncoder(VARIANTS["word-cnn-small"])


@pytest.mark.parametrize(
    ("name", "folded"),
    [
        ("Ada Lovelace", "ada lovelace"),
        ("Gerhard_Schröder", "gerhard schroder"),
        ("Łukasz  Żółć", "lukasz zolc"),
        ("Ærø Straße", "aero strasse"),
        ("O\u2019Brien-Mu\u0308ller", "o'brien-muller"),
        ("J. R. R. Tolkien, Jr.", "j r r tolkien jr"),
        ("\uff21da 2", f"ada {UNKNOWN}"),
        ("Иван", UNKNOWN * 4),
        ("...", ""),
    ],
)
def test_folding(name: str, folded: str) -> None:
    assert fold(name) == folded
    assert fold(folded) == folded
    assert set(folded) <= set(ALPHABET)


def test_letters_are_numbered_from_one_and_padded_at_the_end() -> None:
    ids = encode(["ab z", "É"])
    assert ids.dtype == torch.int64
    assert ids.tolist() == [[1, 2, 27, 26], [5, PADDING, PADDING, PADDING]]


@pytest.mark.parametrize("names", [[], [""], ["ada", " . "]])
def test_empty_names_are_refused(names: list[str]) -> None:
    with pytest.raises(ValueError, match="expected names with a letter in them"):
        encode(names)


@pytest.mark.parametrize("name", VARIANTS)
def test_forward_and_backward(name: str) -> None:
    torch.manual_seed(0)
    module = WordEncoder(VARIANTS[name])
    # All letters occur, since others would have no gradient.
    ids = encode([ALPHABET, ALPHABET[::-1], "ada lovelace"])
    embeddings = module(ids)
    assert embeddings.shape == (3, VARIANTS[name].dimensions)
    assert torch.allclose(embeddings.norm(dim=1), torch.ones(3), atol=1e-6)
    (embeddings[0] * embeddings[2]).sum().backward()
    assert_all_gradients(module)
    letters = module.features.letters.weight.grad
    assert letters is not None
    assert letters[1:].any(dim=1).all()
    assert not letters[PADDING].any()
    with torch.inference_mode():
        assert torch.equal(module.head(module.features(ids)), module(ids))


@pytest.mark.parametrize("training", [False, True])
def test_vector_does_not_depend_on_padding(training: bool) -> None:
    module = small().train(training)
    single = module(encode(["bo"]))[0]
    padded = module(encode(["bo", "hubert blaine wolfeschlegelsteinhausen"]))[0]
    assert torch.allclose(single, padded, atol=1e-6)
    # The network does not return the same vector for all names.
    assert (single - module(encode(["wolfeschlegel"]))[0]).norm() > 0.05


def test_vector_depends_on_the_order_of_letters() -> None:
    module = small().eval()
    with torch.inference_mode():
        martha, marhta, ahtram = module(encode(["martha", "marhta", "ahtram"]))
    assert (martha - marhta).norm() > 1e-3
    assert (martha - ahtram).norm() > 1e-3


def test_padding_alone_has_finite_gradients() -> None:
    module = small()
    embeddings = module(torch.zeros(2, 5, dtype=torch.int64))
    embeddings.sum().backward()
    assert embeddings.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize(
    "ids", [torch.zeros(3, dtype=torch.int64), torch.zeros(3, 0, dtype=torch.int64), torch.zeros(3, 4)]
)
def test_wrong_shapes_are_refused(ids: Tensor) -> None:
    with pytest.raises(ValueError, match=r"expected letter numbers, int64 \[N, >=1\], got") as caught:
        small()(ids)
    assert f"{ids.dtype} {list(ids.shape)}" in str(caught.value)
