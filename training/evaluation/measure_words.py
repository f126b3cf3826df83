"""How often a misspelt name is found, by the encoder and by edit distances (of RapidFuzz)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from rapidfuzz.distance import OSA, JaroWinkler, Levenshtein
from rapidfuzz.process import cdist
from torch import nn
from tqdm import tqdm

from models.name_encoder import VARIANTS, WordEncoder, letters_only
from training.core.run_folder import Run
from training.core.seeds import derive
from training.datasets.misspellings import KINDS, ORDER, misspell
from training.datasets.names import read_names, recombine
from training.evaluation.plots import COLOURS, blank, png
from training.recipe.config import WordsDataSection, WordsRecipe, read_recipe
from training.words import vectors

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
# From a folded name to its distance from each name of a gallery [G].
Ranking = Callable[[str], Floats]

ENCODER, SORTED = "encoder", "Levenshtein, words sorted"
MOST_EDITS = 6
_MOST_OF_A_KIND = 300


@dataclass(frozen=True)
class Probes:
    """Misspelt names and where in the gallery the names are; `kinds` is what a table or a plot calls them."""

    kinds: str
    edits: int
    names: tuple[str, ...]
    targets: Integers


@dataclass(frozen=True)
class Hits:
    """What one method makes of some probes: each one's part in recall@1 [P], and the processor seconds of them all."""

    probes: Probes
    method: str
    values: Floats
    seconds: float

    @property
    def recall(self) -> float:
        """Recall@1, 0..1."""
        return float(self.values.mean())

    def interval(self, draws: int = 2000) -> tuple[float, float]:
        """Of the recall, by a bootstrap over names: 2.5 and 97.5 per cent."""
        random = np.random.default_rng(0)
        means = self.values[random.integers(len(self.values), size=(draws, len(self.values)))].mean(axis=1)
        low, high = np.quantile(means, [0.025, 0.975])
        return float(low), float(high)


def probe_sets(names: Sequence[str], section: WordsDataSection, seed: int) -> list[Probes]:
    """A misspelling of each name, by its place, for every number of edits; then one edit of each kind by itself.

    `ORDER` is only measured by itself: to an edit distance it is another name, whatever else was done to it.
    """
    sets = []
    for title, mixed in (("trained", section.trained), ("held out", section.held_out)):
        kinds = [kind for kind in mixed if kind != ORDER]
        for edits in range(1, MOST_EDITS + 1):
            random = np.random.default_rng(derive(seed, "probes", title, edits))
            spelt = tuple(misspell(name, kinds, edits, random) for name in names)
            sets.append(Probes(title, edits, spelt, np.arange(len(names))))
    for kind in KINDS:
        random = np.random.default_rng(derive(seed, "probes", kind))
        order = random.permutation(len(names))
        fitting = np.sort([place for place in order if KINDS[kind](names[place])][:_MOST_OF_A_KIND]).astype(np.int64)
        if len(fitting):
            spelt = tuple(misspell(names[place], [kind], 1, random) for place in fitting)
            sets.append(Probes(kind, 1, spelt, fitting))
    return sets


def rankings(network: nn.Module, gallery: Sequence[str]) -> dict[str, Ranking]:
    """The methods by name; all of them read folded names."""
    embedded = vectors(network, gallery)
    in_order = by_edits(Levenshtein.distance, [words_sorted(name) for name in gallery])
    return {
        ENCODER: lambda name: np.asarray(1 - embedded @ vectors(network, [name])[0], np.float64),
        "Levenshtein": by_edits(Levenshtein.distance, gallery),
        "OSA": by_edits(OSA.distance, gallery),
        "Jaro-Winkler": by_edits(JaroWinkler.distance, gallery),
        SORTED: lambda name: in_order(words_sorted(name)),
    }


def by_edits(distance: Callable[..., float], gallery: Sequence[str]) -> Ranking:
    """By an edit distance of RapidFuzz."""
    return lambda name: np.asarray(cdist([name], gallery, scorer=distance)[0], np.float64)


def words_sorted(name: str) -> str:
    """The name with its words in alphabetical order, which forgives a surname that comes first."""
    return " ".join(sorted(name.split()))


def search(method: str, ranking: Ranking, probes: Probes) -> Hits:
    """Recall@1 probe by probe: 1 for the nearest, 1 / n where n names of the gallery lie equally near."""
    values = np.zeros(len(probes.names))
    seconds = 0.0
    for place, (name, target) in enumerate(zip(probes.names, probes.targets, strict=True)):
        started = time.process_time()
        distances = ranking(name)
        seconds += time.process_time() - started
        nearest = distances == distances.min()
        values[place] = nearest[target] / nearest.sum()
    return Hits(probes, method, values, seconds)


def recall_table(results: Sequence[Hits]) -> str:
    """Markdown: a row for each set of probes, a column for each method, recall@1 with its interval."""
    methods = _methods(results)
    lines = [f"| kinds | edits | probes | {' | '.join(methods)} |", "|---" * (3 + len(methods)) + "|"]
    for probes in dict.fromkeys(id(hits.probes) for hits in results):
        row = [hits for hits in results if id(hits.probes) == probes]
        cells = [f"{hits.recall:.3f} ({low:.3f}-{high:.3f})" for hits in row for low, high in [hits.interval()]]
        first = row[0].probes
        lines.append(f"| {first.kinds} | {first.edits} | {len(first.names)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def times(results: Sequence[Hits]) -> dict[str, float]:
    """Each method's processor time in the encoder's, which is 1."""
    spent = {method: sum(hits.seconds for hits in results if hits.method == method) for method in _methods(results)}
    return {method: seconds / spent[ENCODER] for method, seconds in spent.items()}


def draw_recall(results: Sequence[Hits], kinds: str, gallery: int) -> bytes:
    """A PNG of recall@1 against the number of edits of those kinds, with the intervals, a line for each method.

    `SORTED` is for the surname first, which is no mixed edit; its line would press the others together.
    """
    shown = [hits for hits in results if hits.probes.kinds == kinds and hits.method != SORTED]
    subtitle = (
        f"kinds of edits {kinds}; {len(shown[0].values):,} probes for each number, a gallery of {gallery:,} names"
    )
    figure, axes = blank("Misspelt names found first", subtitle, "edits", "recall@1")
    methods = _methods(shown)
    for colour, method in zip(COLOURS, methods, strict=False):
        line = [hits for hits in shown if hits.method == method]
        edits, recall = [hits.probes.edits for hits in line], [hits.recall for hits in line]
        low, high = zip(*(hits.interval() for hits in line), strict=True)
        axes.plot(edits, recall, marker="o", markersize=4, color=colour, label=method)
        axes.fill_between(edits, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set_ylim(top=1.002)  # room for half a dot
    axes.legend(frameon=False)
    return png(figure)


def _methods(results: Sequence[Hits]) -> list[str]:
    return list(dict.fromkeys(hits.method for hits in results))


def evaluate_run(run: Run, relatives: int, most: int) -> tuple[list[Hits], int]:
    """Every method on every set of probes, of at most `most` test names (0: all), and the gallery's size.

    The gallery is all names there are, the test names first, and `relatives` more, recombined of all of them.

    Raises:
        RecipeError, RunError, DataError: the run or the names are not there.
    """
    recipe = read_recipe(WordsRecipe, run.folder / "recipe.toml")
    names = read_names(recipe.data, recipe.seed)
    network = WordEncoder(VARIANTS[recipe.model.architecture])
    network.load_state_dict(run.load_best()["networks"]["encoder"])
    real = names.test + names.calibrate + names.train
    made = recombine(real, relatives, {letters_only(name) for name in real}, derive(recipe.seed, "relatives"))
    gallery = real + made
    order = np.random.default_rng(derive(recipe.seed, "tested")).permutation(len(names.test))
    tested = np.sort(order[: most or None])
    sets = probe_sets([names.test[place] for place in tested], recipe.data, derive(recipe.seed, "test"))
    results = []
    methods = rankings(network, gallery)
    for probes in tqdm(sets, disable=None):
        placed = Probes(probes.kinds, probes.edits, probes.names, tested[probes.targets])
        results += [search(method, ranking, placed) for method, ranking in methods.items()]
    return results, len(gallery)
