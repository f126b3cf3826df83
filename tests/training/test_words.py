"""Name encoders: misspellings, evaluation, training."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from accelerate import Accelerator  # type: ignore[import-untyped]
from PIL import Image
from rapidfuzz.distance import Levenshtein
from typer.testing import CliRunner, Result

from models.name_encoder import fold, letters_only
from tests.training.conftest import assert_error, check_resumed, sets, write_identities
from training import evaluate, words
from training.core.errors import DatasetNotFoundError, RecipeError
from training.core.run_folder import Run
from training.datasets import names as sources
from training.datasets.faces import split_of
from training.datasets.misspellings import KEYS, KINDS, misspell
from training.datasets.names import read_names, recombine
from training.evaluation.measure_words import Hits, Probes, probe_sets, recall_table, search, times
from training.recipe.config import read_recipe
from training.recipe.words_config import WordsRecipe
from training.words import SpellingTask

SMALL = ['model.architecture="word-cnn-small"', "data.names=400"]
SMALL += ["train.epochs=2", "train.batch_size=80", "train.lr=0.004"]
PEOPLE = ("Ada_Lovelace", "Grace_Hopper", "Émilie_du_Châtelet", "Jean-Luc_Ponty", "Mary_Somerville", "Kurt_Gödel")


@pytest.fixture
def workshop(folders: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """LFW's layout with six people, faces of three sources, two of which spell names, and some of the authors."""
    authors = sources._authors()[:400]
    monkeypatch.setattr(sources, "_authors", lambda: authors)
    for person in PEOPLE:
        (folders / "data/lfw-view1/lfw" / person).mkdir(parents=True)
    identities = ["pins:adalovelace", "pins:maryanning", "fiw:F0001/MID1", "glint:kurtgodel"]
    faces = [(Image.new("L", (1, 1)), identity) for identity in identities]
    write_identities(folders / "data/faces/train.parquet", faces)
    return folders


def recipe(*overrides: str) -> WordsRecipe:
    return read_recipe(WordsRecipe, Path("training/recipes/names.toml"), [*SMALL, *overrides])


def measure(*options: str) -> Result:
    return CliRunner().invoke(evaluate.cli, ["words", *options])


def train(*options: str) -> Result:
    return CliRunner().invoke(words.cli, ["training/recipes/names.toml", *sets(*SMALL), *options])


# The names.


def test_splits_are_disjoint_and_lfw_is_not_trained_on(workshop: Path) -> None:
    names = read_names(recipe().data, seed=1)
    splits = (names.train, names.synthetic, names.calibrate, names.test)
    letters = [letters_only(name) for split in splits for name in split]
    assert len(letters) == len(set(letters))
    people = {fold(person) for person in PEOPLE}
    assert people < set(names.test)
    # Ada Lovelace is a face's identity, too, without her space.
    assert "adalovelace" not in {*names.train, *names.calibrate}
    assert not {"f0001/mid1", "mid1"} & {*names.train, *names.calibrate, *names.test}
    assert "maryanning" in {*names.train, *names.calibrate, *names.test}
    for split, part in (("train", names.train), ("calibrate", names.calibrate)):
        assert {split_of(name) for name in part} == {split}
    assert {split_of(name) for name in set(names.test) - people} == {"test"}
    assert len(names.train) + len(names.synthetic) == 400
    assert all(fold(name) == name for split in splits for name in split)
    firsts, lasts = ({name.rpartition(" ")[part] for name in names.train} for part in (0, 2))
    assert all(name.rpartition(" ")[0] in firsts and name.rpartition(" ")[2] in lasts for name in names.synthetic)


def test_recombined_names_are_new() -> None:
    people = ["ada lovelace", "jean-luc ponty", "hypatia"]
    expected = {"ada ponty", "jean-luc lovelace"}
    assert set(recombine(people, 50, {letters_only(name) for name in people}, seed=1)) == expected
    assert len(recombine(people, 1, set(), seed=1)) == 1
    assert recombine(people, 0, set(), seed=1) == recombine(["hypatia"], 5, set(), seed=1) == ()


def test_a_missing_data_set_is_named(folders: Path) -> None:
    with pytest.raises(DatasetNotFoundError, match=r"no lfw/<First_Last>/ in .*lfw-view1"):
        read_names(recipe().data, seed=1)


@pytest.mark.data
def test_names_of_lfw_are_test_names_only(datasets: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    people = {fold(path.name) for path in (datasets("lfw-view1") / "lfw").iterdir()}
    names = read_names(read_recipe(WordsRecipe, Path("training/recipes/names.toml")).data, seed=1)
    assert people <= set(names.test)
    assert len(people) > 900
    assert len(names.train) > 900
    assert not people & {*names.train, *names.synthetic, *names.calibrate}


# The noise.


def test_neighbouring_keys() -> None:
    assert {key: set(KEYS[key]) for key in "gqlm"} == {
        "g": set("ftyhvb"),
        "q": set("wa"),
        "l": set("okp"),
        "m": set("njk"),
    }
    assert all(key in KEYS[other] for key, rest in KEYS.items() for other in rest)


@pytest.mark.parametrize(
    ("kind", "name", "spellings"),
    [
        ("neighbour", "q-", {"w-", "a-"}),
        ("stray", "q-", {"qw-", "qa-"}),
        ("drop", "a bo", {" bo", "a o", "a b"}),
        ("drop", "a", set()),
        ("double", "a-b", {"aa-b", "a-bb"}),
        ("swap", "abb c", {"bab c"}),
        ("ph-f", "phil fay", {"fil fay", "phil phay"}),
        ("c-k", "ck", {"c", "k"}),
        ("sch-sh", "schwa", {"shwa"}),
        ("ov-off", "ovidov petrov", {"ovidoff petrov", "ovidow petrov", "ovidov petroff", "ovidov petrow"}),
        ("umlaut", "mueller", {"muller"}),
        ("umlaut", "mo", {"moe"}),
        ("kh-h", "khan", {"han"}),
        ("joined", "al-din shah", {"aldin shah", "al-dinshah"}),
        ("order", "anna maria luisa", {"luisa anna maria"}),
        ("order", "hypatia", set()),
    ],
)
def test_spellings_of_each_kind(kind: str, name: str, spellings: set[str]) -> None:
    assert set(KINDS[kind](name)) == spellings


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_return_different_folded_names(kind: str) -> None:
    name = "yakob kazoov-schmueth phitz"
    spellings = KINDS[kind](name)
    assert spellings
    assert name not in spellings
    assert all(spelling.strip() == spelling == fold(spelling) for spelling in spellings)


def test_misspelling_depends_only_on_the_seed() -> None:
    numbers = (np.random.default_rng(seed) for seed in (1, 1, 2))
    first, again, other = (
        [misspell("gerhard schroeder", list(KINDS), 3, random) for _ in range(6)] for random in numbers
    )
    assert first == again != other


def test_edits_are_counted_and_not_undone() -> None:
    random = np.random.default_rng(0)
    for _ in range(300):
        spelt = misspell("ab", ["swap", "drop"], 2, random)
        assert spelt in {"a", "b"}  # never back to "ab" by a second swap
        assert (
            1 <= Levenshtein.distance("ada lovelace", misspell("ada lovelace", ["neighbour", "drop"], 3, random)) <= 3
        )
    assert misspell("hypatia", ["order"], 3, random) == "hypatia"
    assert {misspell("j lo", ["drop"], 1, random) for _ in range(50)} == {"lo", "j o", "j l"}
    drawn = {misspell("phil", ["ph-f", "neighbour"], 1, random) for _ in range(200)}
    assert "fil" in drawn
    assert len(drawn) > 10


# The evaluation.


def test_equally_near_names_share_the_hit() -> None:
    distances = {"one": [0.0, 1.0, 1.0], "two": [2.0, 1.0, 1.0], "three": [1.0, 1.0, 1.0]}
    probes = Probes("trained", 1, tuple(distances), np.array([0, 1, 2]))
    hits = search("table", lambda name: np.array(distances[name]), probes)
    assert hits.values.tolist() == [1.0, 0.5, pytest.approx(1 / 3)]
    assert hits.recall == pytest.approx(11 / 18)
    low, high = hits.interval()
    assert 1 / 3 <= low < hits.recall < high <= 1


def test_recall_and_latency_tables() -> None:
    probes = [Probes("trained", edits, ("a", "b"), np.array([0, 1])) for edits in (1, 2)]
    results = [
        Hits(part, method, np.array([1.0, value]), seconds)
        for part, value in zip(probes, (1.0, 0.0), strict=True)
        for method, seconds in (("encoder", 0.5), ("Levenshtein", 2.0))
    ]
    assert recall_table(results).splitlines() == [
        "| kinds | edits | probes | encoder | Levenshtein |",
        "|---|---|---|---|---|",
        "| trained | 1 | 2 | 1.000 (1.000-1.000) | 1.000 (1.000-1.000) |",
        "| trained | 2 | 2 | 0.500 (0.000-1.000) | 0.500 (0.000-1.000) |",
    ]
    assert times(results) == {"encoder": 1.0, "Levenshtein": 4.0}


def test_probes_are_of_their_kinds_and_unlike_those_of_training() -> None:
    names = ["ada lovelace", "sofya kovalevskaya", "hypatia"]
    section = recipe().data
    sets = probe_sets(names, section, seed=1)
    assert [(part.kinds, part.edits) for part in sets[:12]] == [
        (kinds, edits) for kinds in ("trained", "held out") for edits in range(1, 7)
    ]
    by_kind = {part.kinds: part for part in sets[12:]}
    assert by_kind["order"].names == ("lovelace ada", "kovalevskaya sofya")
    assert by_kind["order"].targets.tolist() == [0, 1]
    assert "th-t" in by_kind
    assert "ov-off" not in by_kind  # no name ends so
    for part in sets:
        for spelt, target in zip(part.names, part.targets, strict=True):
            assert spelt != names[target]


# The encoder.


def test_training_improves_recall_and_is_evaluated(workshop: Path) -> None:
    small = recipe()
    untrained = SpellingTask(small, read_names(small.data, small.seed), Accelerator()).validate()["recall"]
    result = train()
    assert result.exit_code == 0, result.output
    history = Run(workshop / "runs/names").load_last(1)["progress"].history
    trained = [row["validation/recall"] for row in history]
    assert max(trained) > untrained + 0.1
    assert 0 < history[-1]["train/active"] < history[0]["train/active"] <= 1

    result = measure("--relatives", "40", "--names", "12")
    assert result.exit_code == 0, result.output
    assert "| trained | 1 | 12 |" in result.output
    assert "| order | 1 |" in result.output
    for plot in ("names-trained.png", "names-held-out.png"):
        assert (workshop / "runs/names" / plot).read_bytes().startswith(b"\x89PNG")


def test_resumed_run_ends_with_the_same_weights(workshop: Path) -> None:
    options = sets("data.names=1", "train.epochs=2", "train.checkpoint_steps=2", "train.batch_size=240")
    check_resumed(partial(train, *options, "--set", "data.trained=['drop']"), SpellingTask, 4)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loss.kind=contrastive", "with semi-hard or batch-hard mining"),
        ("loss.mining=random", "with semi-hard or batch-hard mining"),
        ("train.batch_size=31", "multiple of spellings"),
        ("model.architecture=word-rnn", "unknown architecture 'word-rnn'; known: word-cnn, word-cnn-small"),
        ("data.held_out=['drop']", "both trained and held_out: drop"),
        ("data.trained=['drop', 'sneeze']", "unknown kinds of edits: sneeze"),
    ],
)
def test_inconsistent_recipes_are_refused(override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe(override)


def test_missing_inputs_are_named(workshop: Path) -> None:
    assert_error(train("--set", "data.identities=nobody"), "nobody")
    assert not (workshop / "runs/names").exists()
    assert_error(measure("--run", "nobody"), "nobody/recipe.toml")


def test_the_recipe_names_every_kind() -> None:
    assert {*recipe().data.trained, *recipe().data.held_out} == KINDS.keys()
