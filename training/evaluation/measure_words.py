"""Measure the recall of misspelt names by the encoder and by RapidFuzz's edit distances."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
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
from training.metrics.verification import Floats, Indices
from training.recipe.config import read_recipe
from training.recipe.words_config import WordsDataSection, WordsRecipe
from training.words import vectors

# A function of a folded name that returns its distance from each name of a gallery [G].
Ranking = Callable[[str], Floats]

ENCODER, SORTED = "encoder", "Levenshtein, words sorted"
MAX_EDITS = 6
_MAX_OF_A_KIND = 300


@dataclass(frozen=True)
class Probes:
    """Misspelt names and the positions of the right names in the gallery; `kinds` is a title for tables and plots."""

    kinds: str
    edits: int
    names: tuple[str, ...]
    targets: Indices


@dataclass(frozen=True)
class Hits:
    """The result of a method: each probe's contribution to recall@1 [P], and the total processor seconds."""

    probes: Probes
    method: str
    values: Floats
    seconds: float

    @property
    def recall(self) -> float:
        """Recall@1, 0..1."""
        return float(self.values.mean())

    def interval(self, draws: int = 2000) -> tuple[float, float]:
        """Return the 95 % interval of the recall, by a bootstrap over names."""
        random = np.random.default_rng(0)
        means = self.values[random.integers(len(self.values), size=(draws, len(self.values)))].mean(axis=1)
        low, high = np.quantile(means, [0.025, 0.975])
        return float(low), float(high)


def probe_sets(names: Sequence[str], section: WordsDataSection, seed: int) -> list[Probes]:
    """Return a misspelling of each name for every number of edits, and one edit of each single kind.

    `ORDER` is only measured as a single kind, since for an edit distance it makes another name.
    """
    sets = []
    for title, mixed in (("trained", section.trained), ("held out", section.held_out)):
        kinds = [kind for kind in mixed if kind != ORDER]
        for edits in range(1, MAX_EDITS + 1):
            random = np.random.default_rng(derive(seed, "probes", title, edits))
            spellings = tuple(misspell(name, kinds, edits, random) for name in names)
            sets.append(Probes(title, edits, spellings, np.arange(len(names))))
    for kind in KINDS:
        random = np.random.default_rng(derive(seed, "probes", kind))
        order = random.permutation(len(names))
        fitting = np.sort([position for position in order if KINDS[kind](names[position])][:_MAX_OF_A_KIND]).astype(
            np.int64
        )
        if len(fitting):
            spellings = tuple(misspell(names[place], [kind], 1, random) for place in fitting)
            sets.append(Probes(kind, 1, spellings, fitting))
    return sets


def rankings(network: nn.Module, gallery: Sequence[str]) -> dict[str, Ranking]:
    """Return the methods by name; all take folded names."""
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
    """Return the ranking by an edit distance of RapidFuzz."""
    return lambda name: np.asarray(cdist([name], gallery, scorer=distance)[0], np.float64)


def words_sorted(name: str) -> str:
    """Return the name with its words in alphabetical order, which ignores whether the surname is first."""
    return " ".join(sorted(name.split()))


def search(method: str, ranking: Ranking, probes: Probes) -> Hits:
    """Return recall@1 per probe: 1 if the right name is nearest, 1 / n if n names of the gallery are equally near."""
    values = np.zeros(len(probes.names))
    seconds = 0.0
    for position, (name, target) in enumerate(zip(probes.names, probes.targets, strict=True)):
        started = time.process_time()
        distances = ranking(name)
        seconds += time.process_time() - started
        nearest = distances == distances.min()
        values[position] = nearest[target] / nearest.sum()
    return Hits(probes, method, values, seconds)


def recall_table(results: Sequence[Hits]) -> str:
    """Return a Markdown table with a row for each set of probes and recall@1 with its interval for each method."""
    methods = _methods(results)
    lines = [f"| kinds | edits | probes | {' | '.join(methods)} |", "|---" * (3 + len(methods)) + "|"]
    for probes in dict.fromkeys(id(hits.probes) for hits in results):
        row = [hits for hits in results if id(hits.probes) == probes]
        cells = [f"{hits.recall:.3f} ({low:.3f}-{high:.3f})" for hits in row for low, high in [hits.interval()]]
        first = row[0].probes
        lines.append(f"| {first.kinds} | {first.edits} | {len(first.names)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def times(results: Sequence[Hits]) -> dict[str, float]:
    """Return each method's processor time as a multiple of the encoder's."""
    spent = {method: sum(hits.seconds for hits in results if hits.method == method) for method in _methods(results)}
    return {method: seconds / spent[ENCODER] for method, seconds in spent.items()}


def draw_recall(results: Sequence[Hits], kinds: str, gallery: int) -> bytes:
    """Return a PNG of recall@1 over the number of edits, with a line and intervals for each method.

    `SORTED` is left out: it is meant for `ORDER`, which is not among these edits, and would compress the scale.
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
    axes.set_ylim(top=1.002)  # room for half a marker
    axes.legend(frameon=False)
    return png(figure)


def _methods(results: Sequence[Hits]) -> list[str]:
    return list(dict.fromkeys(hits.method for hits in results))


def evaluate_run(run: Run, relatives: int, most: int) -> tuple[list[Hits], int]:
    """Measure all methods on all sets of probes of at most `most` test names (0: all); return also the gallery's size.

    The gallery consists of all names, test names first, and `relatives` names that are recombined from them.

    Raises:
        RecipeError, RunError, DataError: the run or the names are missing.
    """
    recipe = read_recipe(WordsRecipe, run.folder / "recipe.toml")
    names = read_names(recipe.data, recipe.seed)
    network = WordEncoder(VARIANTS[recipe.model.architecture])
    network.load_state_dict(run.load_best()["networks"]["encoder"])
    real = names.test + names.calibrate + names.train
    recombined = recombine(real, relatives, {letters_only(name) for name in real}, derive(recipe.seed, "relatives"))
    gallery = real + recombined
    order = np.random.default_rng(derive(recipe.seed, "tested")).permutation(len(names.test))
    tested = np.sort(order[: most or None])
    sets = probe_sets([names.test[position] for position in tested], recipe.data, derive(recipe.seed, "test"))
    results = []
    methods = rankings(network, gallery)
    for probes in tqdm(sets, disable=None):
        in_gallery = Probes(probes.kinds, probes.edits, probes.names, tested[probes.targets])
        results += [search(method, ranking, in_gallery) for method, ranking in methods.items()]
    return results, len(gallery)
