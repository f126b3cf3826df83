"""The comparison of classifiers: figures, table and plot."""

from __future__ import annotations

import io
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.text import Text
from PIL import Image
from torch import nn
from typer.testing import CliRunner, Result

from models import checkpoint
from models.card import Metric
from models.preprocess import Preprocess
from models.registry import build
from models.tta import Tta
from tests.training.conftest import CLASSES, png, save, strokes, write_parquet
from training.core.errors import DataError
from training.evaluate import cli
from training.evaluation import compare
from training.evaluation.markdown import markers
from training.evaluation.plots import COLOURS, Dot, blank, place_labels
from training.metrics.classification import measure_classifier
from training.metrics.flops import macs

BEGIN, END = markers("compare")
COLOUR = Preprocess(size=(32, 32), mean=(33.3,) * 3, std=(78.6,) * 3)
# Milliseconds a picture where every call takes 64.
TIMED = {(engine, size): 64 / size for engine in ("OpenVINO float32", "torch float32") for size in (1, 32)}
LIGHT = {"num_classes": 3, "widths": [4, 4, 4]}


def save_model(folder: Path, name: str, config: dict[str, object], tta: Tta, classes: tuple[str, ...]) -> None:
    card = {"task": "classify", "preprocess": COLOUR, "classes": classes, "temperature": 0.7, "tta": tta}
    save(folder / name, "resnet20", config, **card)


@pytest.fixture
def zoo(folders: Path) -> Path:
    """Two untrained networks for the strokes, one for other classes, a folder without a card; 20 test strokes."""
    pictures, labels = strokes(20, seed=4)
    write_parquet(folders / "data/strokes/test.parquet", [png(p) for p in pictures], labels)
    torch.manual_seed(0)
    weights = folders / "weights"
    save_model(weights, "first-strokes", LIGHT, "flip", CLASSES)
    save_model(weights, "second-strokes", LIGHT | {"depths": [1, 1, 1]}, "none", CLASSES)
    save_model(weights, "stranger", LIGHT, "none", ("red", "black", "wood"))
    (weights / "empty").mkdir()
    return weights


def run(zoo: Path, *options: str) -> Result:
    return CliRunner().invoke(cli, ["compare", "--weights", str(zoo), "--rounds", "2", *options])


def test_figures_are_those_of_evaluate_and_of_the_files(zoo: Path) -> None:
    fit = compare.fitting(zoo, "strokes")
    assert [folder.name for folder in fit] == ["first-strokes", "second-strokes"]
    entries = compare.measure(fit, "strokes", rounds=1)
    assert entries[0].accuracy >= entries[1].accuracy
    for entry in entries:
        folder = zoo / entry.card.name
        _, metrics = measure_classifier(folder, "strokes")
        figures = {metric.name: metric.value for metric in metrics}
        assert (entry.accuracy, entry.ece) == (figures["accuracy"], figures["ece"])
        assert entry.accuracy_tta == figures.get("accuracy_tta")
        assert (entry.accuracy_tta is None) == (entry.card.tta == "none")
        assert entry.file_size == len((folder / "model.safetensors").read_bytes())
        assert entry.latency.keys() == TIMED.keys()
        assert min(entry.latency.values()) > 0


def test_figures_on_the_card_are_taken_from_there(zoo: Path) -> None:
    folder = compare.fitting(zoo, "strokes")[0]
    card = checkpoint.read_card(folder)
    figures = [
        Metric(name=name, value=value, data="strokes test (60)")
        for name, value in {"accuracy": 0.25, "ece": 0.125}.items()
    ]
    checkpoint.write_card(folder, card.model_copy(update={"metrics": tuple(figures)}))
    (entry,) = compare.measure([folder], "strokes", rounds=1)
    assert (entry.accuracy, entry.accuracy_tta, entry.ece) == (0.25, None, 0.125)


def test_latency_is_per_image(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "interleaved_medians", lambda calls, rounds: dict.fromkeys(calls, 0.064))
    for entry in compare.measure(compare.fitting(zoo, "strokes"), "strokes", rounds=1):
        assert entry.latency == pytest.approx(TIMED)


def test_macs_are_those_counted_by_hand() -> None:
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),  # [8, 8, 8]
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 5, groups=4, padding=2),  # [16, 8, 8]
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    ).eval()
    by_hand = 8 * 8 * 8 * (3 * 3 * 3) + 16 * 8 * 8 * (8 // 4 * 5 * 5) + 16 * 10
    assert macs(module, (3, 16, 16)) == by_hand


def test_macs_agree_with_the_paper_of_resnet() -> None:
    with torch.device("meta"):
        module = build("resnet50").eval()
    assert macs(module, (3, 224, 224)) == pytest.approx(4.1e9, rel=0.02)  # He et al. 2016: 3.8, stride in the 1x1


def test_the_command_writes_table_and_plot(zoo: Path, folders: Path) -> None:
    docs = folders / "docs"
    docs.mkdir()
    (docs / "zoo.md").write_text(f"# Zoo\n\nBefore.\n{BEGIN}\nold\n{END}\nAfter.\n")
    result = run(zoo, "--data", "strokes", "--write", str(docs))
    assert result.exit_code == 0, result.output
    text = (docs / "zoo.md").read_text()
    assert text.startswith(f"# Zoo\n\nBefore.\n{BEGIN}\n")
    assert text.endswith(f"\n{END}\nAfter.\n")
    assert "old" not in text
    assert result.output.strip() == text.partition(BEGIN)[2].partition(END)[0].strip()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert {len(row) for row in rows} == {11}
    assert rows[0][-2:] == ["torch float32, batch 1", "torch float32, batch 32"]
    by_name = {row[0]: row for row in rows[2:]}
    _, metrics = measure_classifier(zoo / "first-strokes", "strokes")
    figures = {metric.name: metric.value for metric in metrics}
    first = by_name["first-strokes"]
    assert first[1:3] == [
        f"{100 * figures['accuracy']:.2f} %",
        f"{100 * figures['accuracy_tta']:.2f} % (flip, 2 views)",
    ]
    assert by_name["second-strokes"][2] == ""
    drawn = (docs / "pictures/zoo.png").read_bytes()
    assert Image.open(io.BytesIO(drawn)).size == (1200, 750)
    assert len(drawn) < 150_000


def test_folder_without_a_matching_model_is_refused(zoo: Path, folders: Path) -> None:
    write_parquet(folders / "data/ants/test.parquet", [png(strokes(1)[0][0])], [0], ("fire", "army", "leaf"))
    with pytest.raises(DataError, match="none of the 3 models"):
        compare.fitting(zoo, "ants")
    result = run(zoo, "--data", "ants")
    assert result.exit_code == 1
    assert "error: none of the 3 models" in result.output


def test_a_damaged_card_is_named(zoo: Path) -> None:
    (zoo / "stranger/card.json").write_text("{")
    result = run(zoo, "--data", "strokes")
    assert result.exit_code == 1
    assert "stranger" in result.output


def test_the_plot_shows_every_model(zoo: Path) -> None:
    entry = compare.measure(compare.fitting(zoo, "strokes")[:1], "strokes", rounds=1)[0]
    crowd = [
        replace(entry, accuracy=0.9 + 0.01 * i, accuracy_tta=None if i % 2 else 0.92 + 0.01 * i, latency=latency(1 + i))
        for i in range(7)
    ]
    names = [f"network{i}-strokes" for i in range(7)]
    crowd = [replace(e, card=e.card.model_copy(update={"name": name})) for e, name in zip(crowd, names, strict=True)]
    picture = Image.open(io.BytesIO(compare.draw(crowd, "strokes"))).convert("RGB").tobytes()
    present = {f"#{picture[at : at + 3].hex()}" for at in range(0, len(picture), 3)}
    assert present > set(COLOURS)  # a label each: the dots themselves are paler


def latency(milliseconds: float) -> dict[tuple[str, int], float]:
    return {key: milliseconds if key[1] == 1 else milliseconds / 2 for key in TIMED}


def test_labels_do_not_overlap() -> None:
    dots = [Dot(x=1 + 0.02 * i, y=2 + 0.03 * (i % 3), area=150, label=f"network {i}\n1.2 M") for i in range(7)]
    _, axes = blank("title", "subtitle", "x", "y")
    axes.set_xlim(0.8, 1.4)
    axes.set_ylim(1.8, 2.3)
    assert place_labels(axes, dots) == 7
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    labels = [text for text in axes.texts if text.get_text().startswith("network")]
    boxes = [Text.get_window_extent(label) for label in labels]
    assert len(boxes) == 7
    assert not any(item.overlaps(other) for item, other in combinations(boxes, 2))
    radius = dots[0].radius * figure.dpi / 72
    for x, y in axes.transData.transform([(dot.x, dot.y) for dot in dots]):
        for box in boxes:
            nearest = np.clip([x, y], box.min, box.max)
            assert np.hypot(*(nearest - (x, y))) >= radius
