"""Encode the letters of a name as a unit vector; names with similar spelling or sound have similar vectors.

WordEncoder, convolutions over letters: Dai, Yan, Zhou, Wang, Yang, Cheng, "Convolutional Embedding for Edit Distance",
SIGIR 2020, called CNN-ED.
    Input [N, L] of letter numbers from `encode`, with any L; output [N, dimensions], each row of length 1.
    Deviations: the paper flattens the last map, so that features depend on a letter's position and names have a maximal
    length; here the mean and the maximum over the letters replace it, and a surname is recognised at any position.
    Letters have learnt vectors, blocks are residual with a layer norm, and there is no pooling between them, since
    names are short.

Padding has no effect: a name's vector does not depend on the other names in its batch.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.embedder import UnitSphere

PADDING = 0
UNKNOWN = "?"
# A letter's number is its position in this string, counted from 1.
ALPHABET = "abcdefghijklmnopqrstuvwxyz -'" + UNKNOWN

# Latin letters without a canonical decomposition, and variants of hyphen, apostrophe and space.
_REPLACEMENTS = str.maketrans(
    {
        **{"æ": "ae", "œ": "oe", "ø": "o", "đ": "d", "ð": "d", "þ": "th", "ł": "l", "\u0131": "i", "ħ": "h", "ŋ": "ng"},
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014", "-"),
        **dict.fromkeys("\u2018\u2019\u02bc\u02b9\u00b4`", "'"),
        **dict.fromkeys("_.,\u00b7", " "),
    }
)


def fold(name: str) -> str:
    """The name in the letters of `ALPHABET`: lower case without diacritics, single spaces between words.

    Case is folded, characters are decomposed (NFKD), marks are removed; underscores, dots and commas separate words;
    all other characters, such as digits and other scripts, become `UNKNOWN`. Folding is idempotent.
    """
    letters = unicodedata.normalize("NFKD", name.casefold().translate(_REPLACEMENTS))
    unmarked = "".join(letter for letter in letters if not unicodedata.category(letter).startswith("M"))
    return "".join(letter if letter in ALPHABET else UNKNOWN for letter in " ".join(unmarked.split()))


def letters_only(name: str) -> str:
    """The letters of a folded name, without spaces and punctuation."""
    return "".join(letter for letter in name if letter.isalpha())


def encode(names: Sequence[str]) -> Tensor:
    """Names, folded or not, as letter numbers: int64 [N, L], L the longest length, shorter names padded at the end.

    Raises:
        ValueError: if there are no names, or a name is empty after folding.
    """
    folded = [fold(name) for name in names]
    if not folded or not all(folded):
        raise ValueError(f"expected names with a letter in them, got {[*names][:3]}")
    rows = torch.full((len(folded), max(map(len, folded))), PADDING)
    for row, name in zip(rows, folded, strict=True):
        row[: len(name)] = torch.tensor([1 + ALPHABET.index(letter) for letter in name])
    return rows


@dataclass(frozen=True)
class WordEncoderConfig:
    """`width` channels in each of `depth` blocks, whose convolutions span `kernel` letters, an odd number."""

    dimensions: int = 128
    width: int = 128
    depth: int = 3
    kernel: int = 3
    dropout: float = 0.0


VARIANTS = {
    "word-cnn": WordEncoderConfig(),
    "word-cnn-small": WordEncoderConfig(dimensions=32, width=48, depth=2),
}


class LetterBlock(nn.Module):
    """x + GELU(norm(convolution(x))) for every letter, and zeros for padding."""

    def __init__(self, width: int, kernel: int):
        super().__init__()
        self.convolution = nn.Conv1d(width, width, kernel, padding=kernel // 2)
        self.norm = nn.LayerNorm(width)
        self.activation = nn.GELU()

    def forward(self, x: Tensor, present: Tensor) -> Tensor:
        """[N, L, width] and the mask of letters [N, L, 1] -> [N, L, width]."""
        convolved = self.convolution(x.transpose(1, 2)).transpose(1, 2)
        # Padding must be zero for the next convolution, as its own padding at the end of the longest name is.
        masked: Tensor = (x + self.activation(self.norm(convolved))) * present
        return masked


class LetterFeatures(nn.Module):
    """Letter numbers [N, L] -> [N, 2 * width]: the mean over the letters, then the maximum."""

    def __init__(self, config: WordEncoderConfig):
        super().__init__()
        self.letters = nn.Embedding(1 + len(ALPHABET), config.width, padding_idx=PADDING)
        self.blocks = nn.ModuleList(LetterBlock(config.width, config.kernel) for _ in range(config.depth))

    def forward(self, ids: Tensor) -> Tensor:
        """[N, 2 * width]."""
        present = (ids != PADDING).unsqueeze(2)  # [N, L, 1]
        x = self.letters(ids)  # [N, L, width]
        for block in self.blocks:
            x = block(x, present)  # [N, L, width]
        mean = x.sum(dim=1) / present.sum(dim=1).clamp(min=1)  # [N, width]
        highest = x.masked_fill(~present, torch.finfo(x.dtype).min).amax(dim=1) * present.any(dim=1)  # [N, width]
        return torch.cat([mean, highest], dim=1)


class WordEncoder(nn.Module):
    """Letter numbers [N, L] -> [N, dimensions] on the unit sphere."""

    def __init__(self, config: WordEncoderConfig):
        super().__init__()
        self.config = config
        self.features = LetterFeatures(config)  # [N, 2 * width]
        self.head = nn.Sequential(
            nn.Dropout(config.dropout),
            nn.Linear(2 * config.width, config.dimensions, bias=False),  # [N, dimensions]
            UnitSphere(),
        )

    def forward(self, ids: Tensor) -> Tensor:
        """Embeddings [N, dimensions], each of length 1."""
        if ids.ndim != 2 or ids.shape[1] == 0 or ids.dtype != torch.int64:
            raise ValueError(f"expected letter numbers, int64 [N, >=1], got {ids.dtype} {list(ids.shape)}")
        embeddings: Tensor = self.head(self.features(ids))
        return embeddings
