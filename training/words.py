"""Train a name encoder: `python -m training.words training/recipes/names.toml`; then `... training.words evaluate`.

The loss, the miner and the loop are those of `training.embed`: none of them cares what is embedded. Two spellings of
one name are positives of each other, all others negatives. What is measured is recall@1: how often a misspelt name's
nearest in a gallery of clean ones is the name itself, beside edit distances.

Names. Test names are people's in LFW's development view, of which nothing is trained on, and a tenth of the others;
another tenth chooses the epoch, both by `training.faces.split_of`. The others are SymPy's authors (BSD-3-Clause; its
list comes with the package, which torch needs) and the identities of the faces whose sources spell names, without
their spaces. From what is trained on, more names are made by giving one person's first names another's surname.

Noise. `KINDS` is all that `misspell` can do, each a function from a folded name to every spelling one edit away:
typing (a neighbouring key for the right one or beside it, a letter dropped, doubled, swapped with the next), letters
that sound alike (ph and f, c and k), other transliterations (-ov, -off, -ow; kh and h), umlauts spelt out or bare,
words joined, the surname first. Lost diacritics are no kind: folding takes them from both sides.
"""

from __future__ import annotations

import importlib.metadata
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import typer
from accelerate import Accelerator  # type: ignore[import-untyped]
from torch import Tensor, nn
from tqdm import tqdm
from typer.core import TyperGroup

from models.checkpoint import write_atomically
from models.words import ALPHABET, UNKNOWN, VARIANTS, WordEncoder, encode, fold
from training import data, losses, mining
from training.config import LossSection, WordsDataSection, WordsRecipe, datasets_folder, read_recipe, runs_folder
from training.drawing import COLOURS, blank, png
from training.errors import DataError, DatasetNotFoundError, RecipeError, TrainingError
from training.faces import source_of, split_of
from training.loop import Learner, fit
from training.run import Run
from training.seeds import derive

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Kind = Callable[[str], list[str]]
# From a folded name to its distance from each name of a gallery [G].
Ranking = Callable[[str], Floats]

_PACKAGE, _FILE = "sympy", "AUTHORS"
_NAMED_SOURCES = {"pins", "vggface2", "glint"}
_AT_ONCE = 512
_BITS, _ONE = 64, np.uint64(1)
_CALIBRATION_PROBES = 4


@dataclass(frozen=True)
class Names:
    """Folded names, no two alike but for spaces and hyphens, each in one split; `made` are recombined of `train`."""

    train: tuple[str, ...]
    made: tuple[str, ...]
    calibrate: tuple[str, ...]
    test: tuple[str, ...]


def bare(name: str) -> str:
    """The folded name's letters alone."""
    return "".join(letter for letter in name if letter.isalpha())


def read_names(section: WordsDataSection, seed: int) -> Names:
    """Every name of the recipe's sources, and as many made ones as bring those trained on to `section.names`.

    Raises:
        DataError, DatasetNotFoundError: a source that is missing or holds no names, or a split without any.
    """
    held_out = _distinct(_people(section.test), set())
    others = _distinct([*_authors(), *_identities(section.identities)], {bare(name) for name in held_out})
    parts = {
        split: tuple(name for name in others if split_of(name) == split) for split in ("train", "calibrate", "test")
    }
    if not all(parts.values()):
        raise DataError(f"{len(others)} names are too few for three splits")
    known = {bare(name) for name in (*held_out, *others)}
    made = recombine(parts["train"], section.names - len(parts["train"]), known, derive(seed, "made"))
    return Names(parts["train"], made, parts["calibrate"], held_out + parts["test"])


def _distinct(names: Iterable[str], known: set[str]) -> tuple[str, ...]:
    """Folded, in order; without those that `known` has or that hold an unknown letter."""
    folded = (fold(name) for name in names)
    first = {bare(name): name for name in sorted(folded) if UNKNOWN not in name}
    return tuple(sorted(name for letters, name in first.items() if letters and letters not in known))


def _people(dataset: str) -> list[str]:
    """LFW's layout: lfw/<First_Last>/<picture>."""
    folder = datasets_folder() / dataset / "lfw"
    if not folder.is_dir():
        raise DatasetNotFoundError(f"no lfw/<First_Last>/ in {folder.parent.absolute()} (VESTIBULE_DATASETS)")
    return [path.name for path in folder.iterdir() if path.is_dir()]


def _identities(dataset: str) -> list[str]:
    """Of the sources that spell names; the others number people."""
    classes = data.find(dataset, "train").classes
    return [identity.partition(":")[2] for identity in classes if source_of(identity) in _NAMED_SOURCES]


def _authors() -> list[str]:
    """Lines as `First Last <address>`; what is one word is a handle, not a name."""
    paths = [path for path in importlib.metadata.files(_PACKAGE) or () if path.name == _FILE]
    if not paths:
        raise DataError(f"{_PACKAGE} {importlib.metadata.version(_PACKAGE)} comes without its {_FILE}")
    lines = paths[0].read_text(encoding="utf-8").splitlines()
    found = (re.match(r"\*?([^<]+) <", line) for line in lines)
    return [match[1] for match in found if match and " " in match[1]]


def recombine(names: Sequence[str], count: int, known: set[str], seed: int) -> tuple[str, ...]:
    """At most `count` names of one's first words and another's last, none of whose letters are in `known`."""
    parted = [name.rpartition(" ") for name in names if " " in name]
    if count < 1 or not parted:
        return ()
    random = np.random.default_rng(seed)
    made: dict[str, str] = {}
    for first, last in random.integers(len(parted), size=(4 * count, 2)):
        name = f"{parted[first][0]} {parted[last][2]}"
        if bare(name) not in known:
            made[bare(name)] = name
        if len(made) == count:
            break
    return tuple(made.values())


# The noise.

ORDER = "order"


def _keys() -> dict[str, str]:
    """The keys that touch each key of an American keyboard, whose rows are set off by half a key."""
    rows = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
    place = {key: (2 * column + row, 2 * row) for row, keys in enumerate(rows) for column, key in enumerate(keys)}
    return {
        key: "".join(other for other, (a, b) in place.items() if 0 < abs(a - x) + abs(b - y) <= 3)
        for key, (x, y) in place.items()
    }


KEYS = _keys()


def _neighbour(name: str) -> list[str]:
    return [name[:i] + key + name[i + 1 :] for i, letter in enumerate(name) for key in KEYS.get(letter, "")]


def _stray(name: str) -> list[str]:
    return [name[: i + 1] + key + name[i + 1 :] for i, letter in enumerate(name) for key in KEYS.get(letter, "")]


def _drop(name: str) -> list[str]:
    shorter = (name[:i] + name[i + 1 :] for i, letter in enumerate(name) if letter.isalpha())
    return [spelling for spelling in shorter if bare(spelling)]


def _double(name: str) -> list[str]:
    return [name[: i + 1] + name[i:] for i, letter in enumerate(name) if letter.isalpha()]


def _swap(name: str) -> list[str]:
    pairs = enumerate(pairwise(name))
    return [name[:i] + b + a + name[i + 2 :] for i, (a, b) in pairs if a != b and (a + b).isalpha()]


def _joined(name: str) -> list[str]:
    return [name[:i] + name[i + 1 :] for i, letter in enumerate(name) if letter in " -"]


def _order(name: str) -> list[str]:
    first, _, last = name.rpartition(" ")
    return [f"{last} {first}"] if first else []


def _exchange(*spellings: str) -> Kind:
    """One for another, wherever it stands, the longest that fits; with a $ only at the end of a word."""
    longest = sorted(spellings, key=len, reverse=True)
    pattern = re.compile("|".join(spelling.replace("$", r"\b") for spelling in longest))
    plain = [spelling.rstrip("$") for spelling in spellings]

    def kind(name: str) -> list[str]:
        return [
            name[: match.start()] + other + name[match.end() :]
            for match in pattern.finditer(name)
            for other in plain
            if other != match[0]
        ]

    return kind


def _umlaut(name: str) -> list[str]:
    found = re.finditer("[aou]e?", name)
    return [name[: m.start() + 1] + ("e" if len(m[0]) == 1 else "") + name[m.end() :] for m in found]


KINDS: dict[str, Kind] = {
    "neighbour": _neighbour,
    "stray": _stray,
    "drop": _drop,
    "double": _double,
    "swap": _swap,
    "ph-f": _exchange("ph", "f"),
    "c-k": _exchange("c", "k", "ck"),
    "y-i": _exchange("y", "i"),
    "z-s": _exchange("z", "s"),
    "v-w": _exchange("v", "w"),
    "th-t": _exchange("th", "t"),
    "oo-u": _exchange("oo", "u", "ou"),
    "sch-sh": _exchange("sch", "sh"),
    "ov-off": _exchange("ov$", "off$", "ow$"),
    "j-y": _exchange("j", "y"),
    "kh-h": _exchange("kh", "h"),
    "ts-tz": _exchange("ts", "tz"),
    "ya-ia": _exchange("ya", "ia"),
    "umlaut": _umlaut,
    "joined": _joined,
    ORDER: _order,
}


def misspell(name: str, kinds: Sequence[str], edits: int, random: np.random.Generator) -> str:
    """The folded name after that many edits, each of a kind drawn from those that fit; fewer where none fits.

    No edit brings back a spelling that was before. Kinds are equally likely, however many ways each has.
    """
    spellings = [name]
    for _ in range(edits):
        for kind in random.permutation(len(kinds)):
            fresh = [spelling for spelling in KINDS[kinds[kind]](spellings[-1]) if spelling not in spellings]
            if fresh:
                spellings.append(fresh[random.integers(len(fresh))])
                break
    return " ".join(spellings[-1].split())  # of "j lo" a dropped letter may leave a space in front


# Edit distances, each from one name to a whole gallery at once.


@dataclass(frozen=True)
class Letters:
    """Some names' letters, int8 [L, G] with zeros below the last, and their lengths [G]."""

    columns: npt.NDArray[np.int8]
    lengths: Integers

    @classmethod
    def of(cls, names: Sequence[str]) -> Letters:
        """Of folded names."""
        columns = np.ascontiguousarray(encode(names).numpy().T.astype(np.int8))
        return cls(columns, np.array([len(name) for name in names]))


def over_gallery(distances: Callable[[str, Letters], Floats], names: Sequence[str], at_once: int = 1024) -> Ranking:
    """`distances` to all the names [G], so many at once, of like lengths: less padding, and they stay in the cache."""
    order = np.argsort([len(name) for name in names], kind="stable")
    parts = [order[first : first + at_once] for first in range(0, len(order), at_once)]
    letters = [Letters.of([names[place] for place in part]) for part in parts]

    def ranking(name: str) -> Floats:
        answer = np.empty(len(names))
        for places, part in zip(parts, letters, strict=True):
            answer[places] = distances(name, part)
        return answer

    return ranking


def _places(name: str) -> npt.NDArray[np.uint64]:
    """For each letter number, the places in the name where that letter stands, as bits: [letters].

    Raises:
        ValueError: a name of more than 64 letters.
    """
    ids = encode([name])[0].tolist()
    if len(ids) > _BITS:
        raise ValueError(f"expected a name of at most {_BITS} letters, got {len(ids)}")
    places = np.zeros(1 + len(ALPHABET), np.uint64)
    for place, letter in enumerate(ids):
        places[letter] |= _ONE << np.uint64(place)
    return places


def edit_distances(name: str, gallery: Letters, *, swaps: bool = False) -> Floats:
    """Letters to insert, delete or replace on the way from `name` (folded, at most 64) to each of the gallery: [G].

    Levenshtein, "Binary codes capable of correcting deletions, insertions, and reversals", 1966. With `swaps` two
    neighbours changing places is one edit, too, and no letter is edited twice: optimal string alignment. A column of
    the table of distances is its rises and falls by one, in the bits of two numbers: Hyyrö, "A Bit-Vector Algorithm for
    Computing Levenshtein and Damerau Edit Distances", Nordic Journal of Computing 10, 2003.
    """
    places, last = _places(name), np.uint64(len(name) - 1)
    rise = np.full(len(gallery.lengths), np.uint64(2**_BITS - 1))
    fall, level, before = np.zeros_like(rise), np.zeros_like(rise), np.zeros_like(rise)
    distances = np.full(len(rise), len(name))
    for column, letters in enumerate(gallery.columns):
        equal = places[letters]
        crossed = ((~level & equal) << _ONE) & before if swaps else np.uint64(0)
        level = (((equal & rise) + rise) ^ rise) | equal | fall | crossed  # no dearer than its neighbour before both
        up, down = fall | ~(level | rise), rise & level
        step = (up >> last & _ONE).astype(int) - (down >> last & _ONE).astype(int)
        distances += step * (column < gallery.lengths)
        up, down = up << _ONE | _ONE, down << _ONE
        rise, fall, before = down | ~(level | up), up & level, equal
    return distances.astype(np.float64)


def jaro_winkler_distances(name: str, gallery: Letters) -> Floats:
    """1 - the Jaro-Winkler similarity of `name` (folded, at most 64 letters) and each of the gallery: [G], 0..1.

    Winkler, "String Comparator Metrics and Enhanced Decision Rules in the Fellegi-Sunter Model of Record Linkage",
    1990: up to four equal first letters count a tenth of what is lacking, each, where the similarity is above 0.7.
    """
    places = _places(name)
    window = np.maximum(np.maximum(gallery.lengths, len(name)) // 2 - 1, 0)
    taken = np.zeros(len(window), np.uint64)  # of the name's letters
    matched = []  # of the gallery's, [G] for each column
    for column, letters in enumerate(gallery.columns):
        below = (_ONE << np.maximum(column - window, 0).astype(np.uint64)) - _ONE
        within = (np.uint64(2) << np.minimum(column + window, _BITS - 1).astype(np.uint64)) - _ONE
        first = _lowest(places[letters] & within & ~below & ~taken)
        taken |= first
        matched.append(first > 0)
    count = np.sum(matched, axis=0)
    unlike = np.zeros(len(window), int)  # matched letters that are another in the order of the other name
    for letters, hit in zip(gallery.columns, matched, strict=True):
        first = _lowest(taken) * hit
        unlike += hit & (places[letters] & first == 0)
        taken &= ~first
    lengths, safe = gallery.lengths, np.maximum(count, 1)
    jaro = (count / len(name) + count / lengths + (count - unlike // 2) / safe) / 3 * (count > 0)
    prefix = _prefix(encode([name])[0].numpy(), gallery.columns)
    return np.asarray(1 - np.where(jaro > 0.7, jaro + 0.1 * prefix * (1 - jaro), jaro))


def _lowest(bits: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    return bits & (~bits + _ONE)


def _prefix(ids: npt.NDArray[Any], letters: npt.NDArray[Any]) -> Integers:
    """How many of the first four letters are equal up to the first that is not: [G]."""
    most = min(4, len(ids), len(letters))
    equal = letters[:most] == ids[:most, None]
    return np.asarray(np.logical_and.accumulate(equal, axis=0).sum(axis=0))


def words_sorted(name: str) -> str:
    """The name with its words in alphabetical order, which forgives a surname that comes first."""
    return " ".join(sorted(name.split()))


# The task.


@torch.inference_mode()
def vectors(network: nn.Module, names: Sequence[str], device: torch.device | str = "cpu") -> npt.NDArray[np.float32]:
    """Each name's vector: [N, D], in evaluation mode."""
    network.eval()
    parts = [names[first : first + _AT_ONCE] for first in range(0, len(names), _AT_ONCE)]
    return np.concatenate([network(encode(part).to(device)).cpu().numpy() for part in parts])


class Spelling:
    """The task: triplets in batches of P names in K spellings; the best epoch by recall@1 of the calibration split."""

    monitor = "recall"
    mode: Literal["max", "min"] = "max"

    def __init__(self, recipe: WordsRecipe, names: Names, accelerator: Accelerator):
        unknown = {*recipe.data.trained, *recipe.data.held_out} - KINDS.keys()
        if unknown:
            raise RecipeError(f"no kind of edit: {', '.join(sorted(unknown))}; there are {', '.join(KINDS)}")
        self.recipe = recipe
        self.accelerator = accelerator
        self.names = names
        self._train = names.train + names.made
        labels = data.positive_labels(np.arange(len(self._train)), "augment")
        self._batches = data.IdentityBatches(
            labels,
            recipe.train.batch_size // recipe.data.spellings,
            recipe.data.spellings,
            recipe.seed,
            process=accelerator.process_index,
            processes=accelerator.num_processes,
        )
        self.steps_per_epoch = self._batches.per_epoch
        torch.manual_seed(derive(recipe.seed, "weights"))
        module = WordEncoder(VARIANTS[recipe.model.architecture])
        self._learner = Learner(module, recipe.train, self.steps_per_epoch, accelerator)
        self.learners = {"encoder": self._learner}
        random, section = np.random.default_rng(derive(recipe.seed, "validate")), recipe.data
        probes = names.calibrate * _CALIBRATION_PROBES
        self._probes = [misspell(name, section.trained, section.edits, random) for name in probes]

    def step(self, epoch: int, index: int, generator: torch.Generator) -> Mapping[str, Tensor]:
        """See `Task`."""
        section, device = self.recipe.data, self.accelerator.device
        random = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        rows = self._batches(epoch, index)
        edits = random.integers(section.edits + 1, size=len(rows))
        spelt = [
            misspell(self._train[row], section.trained, count, random) for row, count in zip(rows, edits, strict=True)
        ]
        self._learner.model.train()
        embeddings = self._learner.model(encode(spelt).to(device))
        labels = torch.from_numpy(rows).to(device)
        embeddings, labels = mining.gather_embeddings(self.accelerator, embeddings.float(), labels)
        loss, active = triplet_loss(self.recipe.loss, embeddings, labels)
        self._learner.update(loss)
        return {"loss": loss.detach(), "active": active.detach()}

    def validate(self) -> Mapping[str, float]:
        """See `Task`."""
        gallery = self.names.calibrate + self.names.train
        embedded = vectors(self._learner.network, gallery, self.accelerator.device)
        probes = vectors(self._learner.network, self._probes, self.accelerator.device)
        nearest = (probes @ embedded.T).argmax(axis=1)
        return {"recall": float((nearest == np.arange(len(probes)) % len(self.names.calibrate)).mean())}


def triplet_loss(loss: LossSection, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The recipe's triplet loss of a batch, embeddings [N, D] and labels [N], and the share of active triplets."""
    distances = losses.pairwise_distances(embeddings, loss.metric)
    if loss.mining == "semi-hard":
        triplets = mining.semi_hard(distances, labels, loss.margin)
    else:
        triplets = mining.batch_hard(distances, labels)
    positive, negative = triplets.of(distances)
    value = losses.triplet(positive, negative, loss.margin, squared=loss.squared, active_only=loss.active_only)
    if loss.squared:
        positive, negative = positive.square(), negative.square()
    return value, mining.active_fraction(positive, negative, loss.margin)


# The evaluation.

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
    in_order = over_gallery(edit_distances, [words_sorted(name) for name in gallery])
    return {
        ENCODER: lambda name: np.asarray(1 - embedded @ vectors(network, [name])[0], np.float64),
        "Levenshtein": over_gallery(edit_distances, gallery),
        "OSA": over_gallery(partial(edit_distances, swaps=True), gallery),
        "Jaro-Winkler": over_gallery(jaro_winkler_distances, gallery),
        SORTED: lambda name: in_order(words_sorted(name)),
    }


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


def table(results: Sequence[Hits]) -> str:
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


def draw(results: Sequence[Hits], kinds: str, gallery: int) -> bytes:
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
    made = recombine(real, relatives, {bare(name) for name in real}, derive(recipe.seed, "relatives"))
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


# The commands.


class _TrainByDefault(TyperGroup):
    """`words RECIPE` is `words train RECIPE`, as the other tasks are started."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in {*self.commands, "--help"}:
            args = ["train", *args]
        return super().parse_args(ctx, args)


cli = typer.Typer(add_completion=False, cls=_TrainByDefault, no_args_is_help=True)


@cli.command()
def train(
    path: Annotated[Path, typer.Argument(metavar="RECIPE", help="As training/recipes/names.toml.")],
    run: Annotated[str | None, typer.Option(help="The run's folder under VESTIBULE_RUNS; default: its name.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from last.pt.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Delete the run that is in the folder.")] = False,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="As train.epochs=1; repeatable.")] = None,
) -> None:
    """Train a name encoder by its recipe; its weights are the run's best.pt."""
    try:
        recipe = read_recipe(WordsRecipe, path, overrides or ())
        accelerator = Accelerator(mixed_precision=recipe.train.precision)
        folder = Run(runs_folder() / (run or recipe.name), main=accelerator.is_main_process)
        task = Spelling(recipe, read_names(recipe.data, recipe.seed), accelerator)
        folder.begin(recipe.model_dump(mode="json"), resume=resume, overwrite=overwrite)
        progress = fit(task, folder, recipe.train, seed=recipe.seed, accelerator=accelerator, resume=resume)
    except TrainingError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    accelerator.end_training()
    if folder.main:
        typer.echo(
            f"{folder.folder}: epoch {progress.best_epoch}, recall@1 {progress.best_value:.4f} of "
            f"{len(task.names.calibrate)} names in {progress.wall_time_s:.0f} s"
        )


@cli.command()
def evaluate(
    run: Annotated[str, typer.Option(help="The run's folder under VESTIBULE_RUNS.")] = "names",
    relatives: Annotated[int, typer.Option(min=0, help="Made-up names in the gallery beside the real ones.")] = 7500,
    most: Annotated[int, typer.Option("--names", min=0, help="At most how many test names; 0 for all.")] = 0,
) -> None:
    """Recall@1 against edit distances: tables on the terminal, plots in the run's folder."""
    folder = Run(runs_folder() / run)
    try:
        results, gallery = evaluate_run(folder, relatives, most)
    except TrainingError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    typer.echo(f"{table(results)}\n\nprocessor time in a gallery of {gallery:,}, in the encoder's:")
    for method, ratio in times(results).items():
        typer.echo(f"{ratio:6.2f}  {method}")
    for kinds in ("trained", "held out"):
        path = folder.folder / f"names-{kinds.replace(' ', '-')}.png"
        write_atomically(path, draw(results, kinds, gallery))
        typer.echo(path)


if __name__ == "__main__":
    cli()
