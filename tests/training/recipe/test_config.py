"""Reading and validation of recipes."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from training.core.errors import RecipeError
from training.recipe.config import Recipe, datasets_folder, read_recipe, runs_folder
from training.recipe.embed_config import EmbedRecipe
from training.recipe.gan_config import GanRecipe
from training.recipe.generative_config import AutoencodeRecipe
from training.recipe.words_config import WordsRecipe

RECIPES = sorted((Path(__file__).parents[3] / "training" / "recipes").glob("*.toml"))
# Of those that are no classifier's.
AUTOENCODERS = (
    "ae-mnist", "cvae-mnist", "vae-denoiser-mnist", "denoiser-mnist", "denoiser-photo", "vae-faces",
    "vae-faces-perceptual",
)  # fmt: skip
FORMS: dict[str, type[Any]] = {
    **dict.fromkeys((path.stem for path in RECIPES if path.stem.startswith(("face-", "mobilefacenet-"))), EmbedRecipe),
    "names": WordsRecipe,
    **dict.fromkeys(AUTOENCODERS, AutoencodeRecipe),
    **dict.fromkeys(("gan-mnist", "wgan-mnist", "gan-faces"), GanRecipe),
}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_are_valid_and_named_as_their_files(path: Path) -> None:
    form = FORMS.get(path.stem, Recipe)
    recipe = read_recipe(form, path)
    assert recipe.name == path.stem
    # The resolved recipe is TOML again, and the same recipe.
    assert (
        form.model_validate(tomllib.loads(tomli_w.dumps(recipe.model_dump(mode="json", exclude_none=True)))) == recipe
    )


def test_overrides_are_toml_values_or_bare_text(workshop: Path) -> None:
    overrides = ["train.epochs=7", "train.optimizer=sgd", 'name="other"', "augment.scale=[0.5, 2]"]
    recipe = read_recipe(Recipe, workshop / "recipe.toml", overrides)
    assert (recipe.train.epochs, recipe.train.optimizer, recipe.name) == (7, "sgd", "other")
    assert recipe.augment.scale == (0.5, 2.0)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epoch=1", "unknown key train.epoch"),
        ("colour=1", "unknown key colour"),
        ("preprocess.sizes=[1, 1]", "unknown key preprocess.sizes"),
        ("train.epochs", "not of the form"),
        ("name.first=1", "name is not a section"),
        ("train.warmup_epochs=4", "must be below epochs"),
        ("train.schedule=plateau", "no warm-up"),
        ("model.architecture=lenet6", "unknown architecture 'lenet6'"),
        ("model.config={depth=3}", "no setting depth"),
        ("train.lr=-1", "train.lr"),
        ("train.optimizer=muon", "muon needs a filter_lr"),
        ("train.filter_lr=0.1", "no other optimizer has one"),
        ("train.bias_lr=1", "bias_lr is a setting of muon"),
        ("train.freeze_whitening=true", "whiten is false"),
        ("augment={crop=32, crop_fill='reflect'}", "a crop of 32 pixels cannot be reflected in an image of 32"),
    ],
)
def test_invalid_settings_are_named(workshop: Path, override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message.replace("[", r"\[")):
        read_recipe(Recipe, workshop / "recipe.toml", [override])


OF_CLASSIFIERS = ["train.whiten=true", "train.identity=true", "train.norm_momentum=0.4", "train.freeze_gains=true"]
OF_CLASSIFIERS += ["augment.flip=alternating", "augment.mixup=0.2", "augment.cutmix=1"]


@pytest.mark.parametrize("name", ["face-distilled", "names", "gan-mnist", "ae-mnist"])
def test_classifier_settings_are_refused_in_other_recipes(name: str) -> None:
    path = next(path for path in RECIPES if path.stem == name)
    for override in OF_CLASSIFIERS[: 4 if name == "names" else None]:
        with pytest.raises(RecipeError, match=f"only a classifier's recipe has {override.partition('=')[0]}"):
            read_recipe(FORMS[name], path, [override])


def test_invalid_files_are_refused_and_a_byte_order_mark_is_ignored(workshop: Path) -> None:
    path = workshop / "recipe.toml"
    recipe = read_recipe(Recipe, path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_recipe(Recipe, path) == recipe
    for content in (b"name = ", b"\xff\xfe"):
        path.write_bytes(content)
        with pytest.raises(RecipeError, match=r"recipe\.toml"):
            read_recipe(Recipe, path)
    with pytest.raises(RecipeError, match=r"nothing\.toml"):
        read_recipe(Recipe, workshop / "nothing.toml")


def test_folders_are_read_from_the_environment_at_call_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VESTIBULE_DATASETS", raising=False)
    monkeypatch.setenv("VESTIBULE_RUNS", "")
    assert (datasets_folder(), runs_folder()) == (Path("data"), Path("runs"))
    monkeypatch.setenv("VESTIBULE_DATASETS", "/a")
    assert datasets_folder() == Path("/a")
