"""Strings of 3-8 MNIST digits: Viterbi over the segment lattice against cutting at blank columns.

`python -m benchmarks.models.digit_strings [--picture]` measures once on strings of the *test* digits, half of them
with gaps of 1 to 6 pixels between the digits' boxes, half with gaps of -4 to 0 in which the ink of at least one pair
touches, all with 2 pixels of jitter up and down; prints a table and writes benchmarks/results/digit_strings.csv. Digit
accuracy is 1 - edit distance / digits. `--picture` draws one of the strings to docs/pictures/digit-string.png instead.

`--fit` prints `models.digit_string_decoder.PENALTIES`, and opens only *training* digits: all 60,000 of MNIST, of which
the network learnt 55,000. What it prints with nothing else given is what stands there. How cuts are made (`CUT_SPACING`
and the constants around it) was chosen on strings of training digits, too.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import numpy.typing as npt
import torch
import typer
from PIL import Image
from torch import Tensor, nn

from models import checkpoint, digit_segmentation, digit_string_decoder
from models.card import ModelCard
from models.preprocess import Preprocess
from training.datasets import images as data

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WEIGHTS = Path("weights/lenet5-mnist")
RESULTS = Path("benchmarks/results/digit_strings.csv")
PICTURE = Path("docs/pictures/digit-string.png")
MNIST = Preprocess(mode="L", size=(28, 28), mean=(0.0,), std=(1.0,))

GAPS = {"apart": (1, 6), "touching": (-4, 0)}
LENGTHS = (3, 8)
JITTER = 2
MARGIN = 4


@dataclass(frozen=True)
class Sample:
    """A picture, uint8 [H, W], of the digits `labels`."""

    picture: npt.NDArray[np.uint8]
    labels: tuple[int, ...]
    spacing: str


def compose(digits: data.ImageSet, spacing: str, random: np.random.Generator) -> Sample:
    """Random digits side by side; where they overlap the brighter pixel counts."""
    while True:
        chosen = random.integers(len(digits.labels), size=random.integers(LENGTHS[0], LENGTHS[1] + 1))
        tiles = [_trimmed(digits.images[row, :, :, 0]) for row in chosen]
        lowest, highest = GAPS[spacing]
        gaps = random.integers(lowest, highest + 1, size=len(tiles))
        height = 20 + 2 * (JITTER + MARGIN)
        canvas = np.zeros((height, 2 * MARGIN + sum(tile.shape[1] + 6 for tile in tiles)), np.uint8)
        x, contact = MARGIN, False
        for number, tile in enumerate(tiles):
            x = max(x + (int(gaps[number]) if number else 0), MARGIN)
            y = (height - tile.shape[0]) // 2 + int(random.integers(-JITTER, JITTER + 1))
            window = canvas[y : y + tile.shape[0], x : x + tile.shape[1]]
            # One pixel further on every side: ink that meets at a corner touches, too.
            around = canvas[y - 1 : y + tile.shape[0] + 1, x - 1 : x + tile.shape[1] + 1]
            contact |= bool((_thickened(tile > 0) & (around > 0)).any())
            np.maximum(window, tile, out=window)
            x += tile.shape[1]
        if contact or spacing == "apart":
            return Sample(canvas[:, : x + MARGIN], tuple(int(digits.labels[row]) for row in chosen), spacing)


def _trimmed(picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    rows, columns = np.flatnonzero(picture.any(axis=1)), np.flatnonzero(picture.any(axis=0))
    return picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _thickened(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    height, width = mask.shape
    result = np.zeros((height + 2, width + 2), bool)
    for down in range(3):
        for right in range(3):
            result[down : down + height, right : right + width] |= mask
    return result


def samples(split: Literal["train", "test"], count: int, seed: int) -> list[Sample]:
    """`count` strings of the split's digits, every other one touching."""
    digits, random = data.load("mnist", split, MNIST), np.random.default_rng(seed)
    return [compose(digits, ("apart", "touching")[number % 2], random) for number in range(count)]


@torch.inference_mode()
def logits(network: nn.Module, card: ModelCard, crops: npt.NDArray[np.uint8]) -> Tensor:
    """uint8 [N, 28, 28] -> [N, 10]."""
    if not len(crops):
        return torch.empty(0, 10)
    pixels = np.stack([card.preprocess.pixels(Image.fromarray(crop)) for crop in crops])
    answer: Tensor = network(card.preprocess.normalise(torch.from_numpy(pixels)))
    return answer


def at_blank_columns(network: nn.Module, card: ModelCard, picture: npt.NDArray[np.uint8]) -> tuple[int, ...]:
    """The baseline: every run of columns with ink is one digit."""
    strength = digit_segmentation.ink(picture)
    filled = np.concatenate([[False], (strength > digit_segmentation.INK).any(axis=0), [False]])
    edges = np.flatnonzero(filled[1:] != filled[:-1]).reshape(-1, 2)
    crops = np.stack([digit_segmentation.normalise(strength[:, start:stop]) for start, stop in edges])
    return tuple(logits(network, card, crops).argmax(dim=1).tolist())


def edits(answer: Sequence[int], truth: Sequence[int]) -> int:
    """Levenshtein distance."""
    row = list(range(len(truth) + 1))
    for i, a in enumerate(answer, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(truth, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


def measure(strings: Sequence[Sample]) -> list[dict[str, str | int | float]]:
    """A row for each spacing and length, and each spacing's total."""
    network, card = checkpoint.load(WEIGHTS)
    outcomes = []  # (viterbi right, viterbi edits, confidence, baseline right, baseline edits)
    for string in strings:
        found = digit_segmentation.build_lattice(string.picture)
        reading = digit_string_decoder.read(found, logits(network, card, found.crops), card.temperature)
        wrong = edits([digit.class_id for digit in reading.digits], string.labels)
        wrong_blank = edits(at_blank_columns(network, card, string.picture), string.labels)
        outcomes.append((wrong == 0, wrong, reading.confidence, wrong_blank == 0, wrong_blank))
    table, rows = np.array(outcomes, dtype=np.float64), []
    for spacing in GAPS:
        for length in (*range(LENGTHS[0], LENGTHS[1] + 1), None):
            chosen = [s.spacing == spacing and length in (None, len(s.labels)) for s in strings]
            digits = sum(len(s.labels) for s, one in zip(strings, chosen, strict=True) if one)
            part = table[np.array(chosen)]
            if not len(part):
                continue
            rows.append(
                {
                    "spacing": spacing,
                    "length": "all" if length is None else length,
                    "strings": len(part),
                    "viterbi_strings": round(float(part[:, 0].mean()), 4),
                    "viterbi_digits": round(float(1 - part[:, 1].sum() / digits), 4),
                    "viterbi_confidence": round(float(part[:, 2].mean()), 4),
                    "blank_strings": round(float(part[:, 3].mean()), 4),
                    "blank_digits": round(float(1 - part[:, 4].sum() / digits), 4),
                }
            )
    return rows


@dataclass(frozen=True)
class Lattices:
    """Lattices of many strings as arrays: [strings, node that a candidate ends at, segments in it, ...]."""

    features: Tensor  # [B, S + 1, K + 1, 14]
    scores: Tensor  # log-probabilities [B, S + 1, K + 1, 10]
    exists: Tensor  # bool [B, S + 1, K + 1]
    segments: Tensor  # [B]
    labels: Tensor  # [B, digits], 0 beyond the string's end
    lengths: Tensor  # [B]


def lattices(strings: Sequence[Sample]) -> Lattices:
    """The candidates of every string, with what `decode.Penalties` weighs."""
    network, card = checkpoint.load(WEIGHTS)
    found = [digit_segmentation.build_lattice(string.picture) for string in strings]
    most = max(one.segments for one in found)
    longest = max(c.stop - c.start for one in found for c in one.candidates)
    shape = (len(strings), most + 1, longest + 1)
    features, scores = torch.zeros(*shape, 14), torch.zeros(*shape, 10)
    exists, labels = torch.zeros(shape, dtype=torch.bool), torch.zeros(len(strings), LENGTHS[1], dtype=torch.long)
    for row, (one, string) in enumerate(zip(found, strings, strict=True)):
        tempered = logits(network, card, one.crops).double() / card.temperature
        stops = torch.tensor([c.stop for c in one.candidates])
        spans = stops - torch.tensor([c.start for c in one.candidates])
        features[row, stops, spans] = torch.from_numpy(digit_string_decoder.rejection_features(one, tempered)).float()
        scores[row, stops, spans] = tempered.log_softmax(dim=1).float()
        exists[row, stops, spans] = True
        labels[row, : len(string.labels)] = torch.tensor(string.labels)
    segments, lengths = [one.segments for one in found], [len(string.labels) for string in strings]
    return Lattices(features, scores, exists, torch.tensor(segments), labels, torch.tensor(lengths))


def surprise(batch: Lattices, weights: Tensor) -> Tensor:
    """-log P(string | picture) of each string, [B]: `decode.forward_along` - `decode.forward`, for many at once."""
    count, nodes, spans = batch.exists.shape
    never = -1e6  # finite: the gradient of logsumexp over infinities alone is not a number
    any_class = torch.where(batch.exists, batch.features @ weights, torch.tensor(never))
    its_class = any_class[..., None] + batch.scores.gather(
        3, batch.labels[:, None, None, :].expand(-1, nodes, spans, -1)
    )
    start = torch.full((count, 1), never)
    # Of the last `spans` nodes, the latest first: what all paths to there have in sum, and those with so many digits.
    paths = torch.cat([torch.zeros(count, 1), start.expand(-1, spans - 2)], dim=1)
    along = torch.full((count, spans - 1, LENGTHS[1] + 1), never)
    along[:, 0, 0] = 0
    totals, alongs = [], []
    for node in range(1, nodes):
        total = (paths + any_class[:, node, 1:]).logsumexp(dim=1)
        steps = (along[:, :, :-1] + its_class[:, node, 1:]).logsumexp(dim=1)
        totals.append(total)
        alongs.append(torch.cat([start, steps], dim=1))
        paths = torch.cat([total[:, None], paths[:, :-1]], dim=1)
        along = torch.cat([alongs[-1][:, None], along[:, :-1]], dim=1)
    every, last = torch.arange(count), batch.segments - 1
    return torch.stack(totals, dim=1)[every, last] - torch.stack(alongs, dim=1)[every, last, batch.lengths]


def fit(strings: Sequence[Sample]) -> digit_string_decoder.Penalties:
    """The constants of least mean surprise, drawn towards zero a little."""
    batch = lattices(strings)
    scale = torch.ones(14)
    scale[0] = 0.1  # energies are ten times as large as all else
    scaled = torch.zeros(14, requires_grad=True)
    optimizer = torch.optim.LBFGS([scaled], max_iter=40, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = surprise(batch, scaled * scale).mean() + 1e-3 * scaled.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    weights = [round(float(weight), 2) for weight in scaled.detach() * scale]
    return digit_string_decoder.Penalties(weights[0], weights[1], weights[2], weights[3], tuple(weights[4:]))


def draw(strings: Sequence[Sample]) -> None:
    """The first long touching string: its cuts, its lattice with the path that Viterbi took, its answer."""
    from matplotlib.figure import Figure

    network, card = checkpoint.load(WEIGHTS)
    string = next(s for s in strings if s.spacing == "touching" and len(s.labels) >= 6)
    found = digit_segmentation.build_lattice(string.picture)
    answers = logits(network, card, found.crops)
    reading = digit_string_decoder.read(found, answers, card.temperature)
    height, width = string.picture.shape
    figure = Figure(figsize=(10, 8.2), dpi=110, layout="constrained")
    ratios = [height / width, 0.42, height / width]
    cutting, graph, answer = figure.subplots(3, 1, height_ratios=ratios, sharex=True)
    path = [found.candidates[index] for index in reading.path]
    for axes in (cutting, answer):
        axes.imshow(255 - string.picture, cmap="gray", extent=(0, width, height, 0), aspect="equal", vmin=-60)
    _draw_cuts(cutting, found)
    _draw_lattice(graph, found, path, reading)
    _draw_cuts(answer, found, [0, *(candidate.stop for candidate in path)])
    for digit in reading.digits:
        x0, _, x1, _ = digit.box
        answer.text((x0 + x1) / 2, height + 1, f"{digit.class_id}", ha="center", va="top", size=22, weight="bold")
        answer.text((x0 + x1) / 2, height + 9.5, f"{digit.confidence:.3f}", ha="center", va="top", size=9, color="gray")
    cutting.set_title(f"{found.segments - 1} cuts, each along little ink", loc="left")
    graph.set_title(f"{len(found.candidates)} candidates: every run of segments that could be a digit", loc="left")
    truth = "".join(map(str, string.labels))
    right = "right" if reading.text == truth else f"wrong: it is {truth}"
    answer.set_title(f"read as {reading.text} with confidence {reading.confidence:.3f} ({right})", loc="left")
    for axes in (cutting, graph, answer):
        axes.set_axis_off()
        axes.set_xlim(0, width)
    answer.set_ylim(height + 13, 0)
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE)
    print(f"{PICTURE}: {truth} read as {reading.text}")


def _draw_cuts(axes: Axes, found: digit_segmentation.Lattice, chosen: Sequence[int] | None = None) -> None:
    for index in range(found.segments + 1) if chosen is None else chosen:
        axes.plot(found.cuts[index], found.rows, color="tab:red", lw=1 if chosen is None else 2)


def _draw_lattice(
    axes: Axes,
    found: digit_segmentation.Lattice,
    path: Sequence[digit_segmentation.DigitCandidate],
    reading: digit_string_decoder.DigitReading,
) -> None:
    """A candidate is an arch over the segments that it takes, the higher the more of them."""
    middles = found.cuts.mean(axis=1)
    for candidate in found.candidates:
        xs = np.linspace(middles[candidate.start], middles[candidate.stop], 30)
        arch = np.sin(np.linspace(0, np.pi, 30)) * (xs[-1] - xs[0])
        on_path = candidate in path
        axes.plot(xs, arch, color="tab:red" if on_path else "0.75", lw=3 if on_path else 0.6, zorder=2 + on_path)
        if on_path:
            label = reading.digits[path.index(candidate)].class_id
            axes.text(xs.mean(), arch.max() + 0.5, f"{label}", ha="center", va="bottom", size=15, color="tab:red")
    axes.plot(middles, np.zeros(len(middles)), "o", color="0.3", ms=3, zorder=4)
    axes.set_ylim(-1, None)


def main(
    strings: Annotated[int, typer.Option(min=2, help="How many, half of them touching.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of digits, gaps and jitter.")] = 1998,
    picture: Annotated[bool, typer.Option("--picture", help="Draw one string instead.")] = False,
    fitting: Annotated[bool, typer.Option("--fit", help="Fit the constants on training digits instead.")] = False,
) -> None:
    """See the top of the file."""
    if fitting:
        print(fit(samples("train", strings, seed)))
        return
    if picture:
        draw(samples("test", 40, seed))
        return
    rows = measure(samples("test", strings, seed))
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(" ".join(f"{name:>18}" for name in rows[0]))
    for row in rows:
        print(" ".join(f"{value:>18}" for value in row.values()))


if __name__ == "__main__":
    typer.run(main)
