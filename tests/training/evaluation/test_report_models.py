"""The page of model cards; docs/models.md must agree with the cards."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from models import checkpoint
from training.core.errors import DataError
from training.evaluation import report_models
from training.evaluation.markdown import replaced
from training.evaluation.report_models import PART, markdown, shipped

ROOT = Path(__file__).parents[3]
WEIGHTS, PAGE = ROOT / "weights", ROOT / "docs" / "models.md"
README = ROOT / "README.md"


def test_page_agrees_with_the_cards() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert replaced(page, PART, markdown(WEIGHTS)) == page, "python -m training.evaluation.report_models docs/models.md"


def test_page_lists_every_model_in_git() -> None:
    listed = subprocess.run(["git", "ls-files", "weights"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("no git here")
    tracked = {Path(line).parts[1] for line in listed.stdout.splitlines() if line.endswith("card.json")}
    assert tracked <= {folder.name for folder in shipped(WEIGHTS)}, "weights/LICENSES.md names every shipped model"


def test_accuracies_in_the_readme_are_those_of_the_cards() -> None:
    section = README.read_text(encoding="utf-8").partition("## Included models")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([\w-]+)`[^|]*\|[^|]*\| ([\d.]+)[^|(]*(?:\(([\d.]+))?", section, re.MULTILINE)
    checked = set()
    for name, accuracy, augmented in rows:
        measured = {
            metric.name: f"{metric.value:.4f}"
            for metric in checkpoint.read_card(WEIGHTS / name).metrics
            if " test (" in metric.data
        }
        if "accuracy" in measured:
            assert accuracy == measured["accuracy"], name
            assert augmented in ("", measured.get("accuracy_tta", "")), name
            checked.add(name)
    assert len(checked) == 10


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A shipped model, another model, and a model that LICENSES.md names and is missing."""
    folder = tmp_path / "weights"
    for name in ("lenet5-mnist", "cups"):
        shutil.copytree(WEIGHTS / "lenet5-mnist", folder / name)
    (folder / "LICENSES.md").write_text("# `cups`\n| model |\n|---|\n| `lenet5-mnist`, `to-come` | `cups` |\n")
    return folder


def test_section_of_a_card(weights: Path) -> None:
    text = markdown(weights)
    card = json.loads((weights / "lenet5-mnist/card.json").read_text())
    assert [line for line in text.splitlines() if line.startswith("## ")] == ["## lenet5-mnist"]
    assert "| [lenet5-mnist](#lenet5-mnist) | classify | 28x28 L | 61,706 | 0.2 |" in text
    for part in (card["description"], card["data"], card["license"], card["source"], card["sha256"][:12]):
        assert part in text
    figures = "accuracy 0.995, nll 0.01609, ece 0.002113, accepted@reject=0.05 0.9476"
    assert f"- **Measured**: {figures} on mnist test (10,000)\n" in text
    assert "epoch 29 of 30, seed 1998, 257 s on AMD EPYC" in text


def test_reported_figures_are_marked() -> None:
    text = markdown(WEIGHTS)
    assert "accuracy 0.751 on ImageNet-1k validation, as reported by its authors" in text


def test_a_changed_card_changes_the_page(weights: Path, tmp_path: Path) -> None:
    page = tmp_path / "models.md"
    command = [str(page), "--weights", str(weights)]
    assert CliRunner().invoke(report_models.cli, command).exit_code == 0
    before = page.read_text()
    path = weights / "lenet5-mnist/card.json"
    path.write_text(path.read_text().replace('"value": 0.995,', '"value": 0.996,'))
    assert replaced(before, PART, markdown(weights)) != before
    path.write_text("{}")
    result = CliRunner().invoke(report_models.cli, command)
    assert (result.exit_code, result.output.startswith("error: ")) == (1, True)
    assert page.read_text() == before


def test_missing_licences_are_reported(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"LICENSES\.md: No such file"):
        shipped(tmp_path)
