"""Words: the letters of a name to a point on the unit sphere, where near means spelt or sounding alike.

WordEncoder, convolutions over letters: Dai, Yan, Zhou, Wang, Yang, Cheng, "Convolutional Embedding for Edit Distance",
SIGIR 2020, called CNN-ED.
    Input [N, L] of letter numbers with any L, as `encode` makes them; output [N, dimensions], each row of length 1.
    Deviations: the paper flattens the last map, so that a letter's place counts from the name's beginning and names
    have a longest length; here the mean and the maximum over the letters stand in its place, and a surname is found
    wherever it stands. Letters have learnt vectors, blocks are residual with a layer norm, and there is no pooling
    between them: names are short. The paper's loss also asks for the edit distance itself; a loss is not the network's
    concern.

What the padding holds is never read: a name's vector does not depend on which other names are in its batch.
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
# A letter's number is its place here, counted from 1.
ALPHABET = "abcdefghijklmnopqrstuvwxyz -'" + UNKNOWN

# Of Latin letters, those that have no canonical decomposition; and what people type for a hyphen or an apostrophe.
_FOLDS = str.maketrans(
    {
        **{"æ": "ae", "œ": "oe", "ø": "o", "đ": "d", "ð": "d", "þ": "th", "ł": "l", "\u0131": "i", "ħ": "h", "ŋ": "ng"},
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014", "-"),
        **dict.fromkeys("\u2018\u2019\u02bc\u02b9\u00b4`", "'"),
        **dict.fromkeys("_.,\u00b7", " "),
    }
)


def fold(name: str) -> str:
    """The name in `ALPHABET`: small letters without diacritics, single spaces between words.

    Case is folded, compatibility decomposed (NFKD), marks are dropped; underscores, dots and commas part words;
    whatever is left that `ALPHABET` lacks, digits and other scripts among it, becomes `UNKNOWN`. Folding twice is
    folding once.
    """
    letters = unicodedata.normalize("NFKD", name.casefold().translate(_FOLDS))
    kept = "".join(letter for letter in letters if not unicodedata.category(letter).startswith("M"))
    return "".join(letter if letter in ALPHABET else UNKNOWN for letter in " ".join(kept.split()))


def bare(name: str) -> str:
    """The folded name's letters alone."""
    return "".join(letter for letter in name if letter.isalpha())


def encode(names: Sequence[str]) -> Tensor:
    """Names, folded or not, as letter numbers: int64 [N, L], L the longest, the others padded at their ends.

    Raises:
        ValueError: no names, or one that nothing is left of when it is folded.
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
    """`width` channels in each of `depth` blocks, whose convolutions reach over `kernel` letters, an odd number."""

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
    """x + GELU(norm(convolution(x))) for every letter, and zeros where there is none."""

    def __init__(self, width: int, kernel: int):
        super().__init__()
        self.convolution = nn.Conv1d(width, width, kernel, padding=kernel // 2)
        self.norm = nn.LayerNorm(width)
        self.activation = nn.GELU()

    def forward(self, x: Tensor, present: Tensor) -> Tensor:
        """[N, L, width] and where letters are [N, L, 1] -> [N, L, width]."""
        seen = self.convolution(x.transpose(1, 2)).transpose(1, 2)
        # Else the next convolution would see the padding as something other than the end of the name.
        masked: Tensor = (x + self.activation(self.norm(seen))) * present
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
        if min(config.dimensions, config.width, config.depth) < 1 or config.kernel % 2 == 0:
            raise ValueError(f"dimensions, width and depth must be at least 1 and the kernel odd, got {config}")
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
