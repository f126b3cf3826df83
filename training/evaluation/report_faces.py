"""Write the figures of a face embedder as tables and plots."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import ndtr, ndtri  # type: ignore[import-untyped]

from models.card import Metric
from models.checkpoint import write_atomically
from training.evaluation.embedded_faces import FAILED
from training.evaluation.markdown import put, table
from training.evaluation.measure_faces import (
    FPIRS,
    GALLERIES,
    MATED,
    MIN_PEOPLE,
    RATES,
    Average,
    Figures,
    Identification,
    ThresholdCheck,
    Verification,
)
from training.evaluation.plots import ACCENT, COLOURS, INK, PALE, blank, png
from training.metrics.verification import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def markdown(figures: Figures) -> str:
    """Return the tables, each with an explanation."""
    card, rates = figures.card, [f"TAR at {_rate(rate)}" for rate in RATES]
    verification = table(
        ["set", "mated", "non-mated", "accuracy", "EER", *rates, "no face"],
        [_verification_row(part) for part in figures.verifications],
    )
    checks = table(
        ["set", "FMR requested", "similarity", "FMR measured", "95 % interval", "measured / requested"],
        [_check_row(check) for check in figures.threshold_checks],
    )
    heads = [f"FNIR at {_rate(rate)}" for rate in FPIRS]
    identification = table(
        ["set", "subjects", "images", "rank-1", "mated searches", "non-mated", *heads, "no face"],
        [_identification_row(part) for part in figures.identifications],
    )
    command = f"python -m training.evaluate faces weights/{card.name} --data {figures.dataset}"
    assert card.matching is not None  # noqa: S101  checked by `FaceEmbedder`
    return f"""\
`{card.name}`, version {card.version}, by `{command}`: the
{figures.people} test identities of {figures.dataset}, which were not used for training, selection or calibration.
Sources with fewer than {MIN_PEOPLE} people are counted in "all" only.

## Verification

At most {MATED} mated pairs of each identity; both photos of a non-mated pair are of one source. In LFW the face nearest
to the middle is compared; an image without a face has the similarity {FAILED:g} to all others, so that the rates are
those of the whole system (ISO/IEC 19795: FAR, not FMR). Accuracy: each of ten folds with the threshold that is best on
the others, and the standard error. At a rate below one of the pairs counted here, none is accepted. In the row "a
camera's photo" the second photo of each pair is degraded as by a camera at a door: reduced to as little as 24 pixels,
blurred, moved, dark, noisy, compressed, grey, each on half of the photos.

{verification}

![ROC](pictures/faces-roc.png)

![DET](pictures/faces-det.png)

## Requested and measured false match rate

Each rate is measured at the similarity that the card gives for the requested rate. The intervals are a bootstrap over
identities.

{checks}

![Reliability](pictures/faces-reliability.png)

The expected calibration error of the card's probability is {figures.reliability.error:.4f}, with mated pairs weighted
{card.matching.prior:g} of all, which is the card's prior.

## Identification

One gallery photo of each subject, drawn at random; all others are probes. Rank-1 with all subjects enrolled; FNIR with
half of them: a mated search fails if the subject is not the first candidate, or is below the threshold at which the
given share of the non-mated searches has a candidate. Mean and standard deviation over {GALLERIES} galleries; for
ORL over the ten photos of each subject in turn, all enrolled.

{identification}"""


def card_metrics(figures: Figures) -> list[Metric]:
    """Return the figures for the card: TAR and, where defined, accuracy, rank-1 and FNIR of each set, all 0..1."""
    metrics = verification_metrics(figures.verifications)
    for search in figures.identifications:
        values = {"rank-1": search.rank_one.mean}
        values |= {f"fnir@fpir={rate:g}": average.mean for rate, average in search.fnir.items()}
        metrics += [Metric(name=name, value=value, data=f"{search.name}: test") for name, value in values.items()]
    return metrics


def verification_metrics(verifications: Sequence[Verification], suffix: str = "") -> list[Metric]:
    """Return TAR and, where defined, accuracy of each set, 0..1; `suffix` is appended to the figures' names."""
    metrics = []
    for part in verifications:
        values = {f"tar@fmr={rate:g}": part.scores.tar(rate) for rate in RATES}
        if part.accuracy is not None:
            values = {"accuracy": part.accuracy[0]} | values
        data = f"{part.name}: test"
        metrics += [Metric(name=f"{name}{suffix}", value=value, data=data) for name, value in values.items()]
    return metrics


def _rate(rate: float) -> str:
    return f"{100 * rate:g} %"


def _verification_row(part: Verification) -> list[str]:
    scores = part.scores
    return [
        part.name,
        f"{len(scores.mated):,}",
        f"{len(scores.impostor):,}",
        "" if part.accuracy is None else f"{100 * part.accuracy[0]:.2f} ± {100 * part.accuracy[1]:.2f} %",
        f"{100 * scores.eer():.2f} %",
        *(f"{100 * scores.tar(rate):.2f} %" for rate in RATES),
        f"{part.failures} of {part.images:,}",
    ]


def _check_row(check: ThresholdCheck) -> list[str]:
    low, high = check.interval
    return [
        check.name,
        _rate(check.fmr) + (" (extrapolated)" if check.threshold.extrapolated else ""),
        f"{check.threshold.similarity:.4f}",
        f"{100 * check.measured:.3f} %",
        f"{100 * low:.3f} to {100 * high:.3f} %",
        f"{check.measured / check.fmr:.2f}",
    ]


def _identification_row(part: Identification) -> list[str]:
    averages = [part.fnir.get(rate) for rate in FPIRS]
    return [
        part.name,
        f"{part.subjects:,}",
        f"{part.images:,}",
        _average(part.rank_one),
        *(f"{count:,.0f}" if part.fnir else "" for count in (part.mated, part.impostor)),
        *("" if average is None else _average(average) for average in averages),
        f"{part.failures} of {part.images:,}",
    ]


def _average(average: Average) -> str:
    return f"{100 * average.mean:.2f} ± {100 * average.deviation:.2f} %"


def publish(figures: Figures, text: str, folder: Path) -> None:
    """Write faces.md and pictures/faces-*.png into a folder; of faces.md only the part between its markers.

    Raises:
        DataError: see `put`.
    """
    put(folder / "faces.md", "faces", text, heading="Faces")
    drawings = {"roc": draw_roc(figures), "det": draw_det(figures), "reliability": draw_reliability(figures)}
    for name, drawing in drawings.items():
        write_atomically(folder / "pictures" / f"faces-{name}.png", drawing)


def draw_roc(figures: Figures) -> bytes:
    """Return a PNG of TAR over FMR, the latter logarithmic."""
    from matplotlib.ticker import FuncFormatter

    figure, axes = blank(
        "Verification: ROC",
        f"{figures.card.name}: mated pairs accepted against non-mated pairs accepted, at every threshold",
        "false match rate",
        "true accept rate",
    )
    _curves(axes, figures.verifications, lambda fmr, fnmr: (fmr, 1 - fnmr))
    axes.set_xscale("log")
    axes.set_xlim(1e-4, 1)
    axes.set_ylim(0, 1.01)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
    axes.legend(loc="lower right", frameon=False, fontsize=9, labelcolor=INK)
    return png(figure)


# Tick values of the DET plot; the first and the last are its limits.
_DET_TICKS = (0.0001, 0.001, 0.01, 0.05, 0.2, 0.4, 0.6)


def draw_det(figures: Figures) -> bytes:
    """Return a PNG of FNMR over FMR on normal-deviate axes, on which normally distributed similarities are a line.

    Martin et al., "The DET Curve in Assessment of Detection Task Performance", Eurospeech 1997.
    """
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    figure, axes = blank(
        "Verification: DET",
        f"{figures.card.name}: both errors at every threshold, on normal-deviate axes",
        "false match rate",
        "false non-match rate",
    )
    for axis, scale, limit in (
        (axes.xaxis, axes.set_xscale, axes.set_xlim),
        (axes.yaxis, axes.set_yscale, axes.set_ylim),
    ):
        scale("function", functions=(_deviate, ndtr))
        limit(_DET_TICKS[0], _DET_TICKS[-1])
        axis.set_major_locator(FixedLocator(_DET_TICKS))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
    axes.plot(_DET_TICKS, _DET_TICKS, color=PALE, linewidth=0.8, linestyle=":")
    _curves(axes, figures.verifications, lambda fmr, fnmr: (fmr, fnmr))
    axes.legend(loc="lower left", framealpha=1, edgecolor="none", fontsize=9, labelcolor=INK)
    return png(figure)


def _deviate(shares: Floats) -> Floats:
    """Return the normal deviate of shares, which matplotlib also passes beyond 0..1."""
    return np.asarray(ndtri(np.clip(shares, 1e-9, 1 - 1e-9)))


def _curves(
    axes: Axes, parts: Sequence[Verification], point: Callable[[Floats, Floats], tuple[Floats, Floats]]
) -> None:
    """Draw a line for each set at `point` of its (FMR, FNMR): all in ink, sources in colour, LFW dashed."""
    for number, part in enumerate(parts):
        fmr, fnmr = part.scores.curve()
        # The lowest of the thresholds with one FMR; neither scale can show 0.
        rates, lowest = np.unique(fmr, return_index=True)
        x, y = point(rates[rates > 0], fnmr[lowest[rates > 0]])
        axes.plot(
            x,
            y,
            color=COLOURS[(number - 1) % len(COLOURS)] if number else INK,
            linewidth=1.4 if number else 2.2,
            linestyle="-" if part.accuracy is None else "--",
            drawstyle="steps-post",
            label=part.name,
        )
    axes.tick_params(pad=7)  # so that the labels do not touch where the axes meet


def draw_reliability(figures: Figures) -> bytes:
    """Return a PNG of the share of mated pairs over the predicted probability in each bin, with its interval."""
    curve, matching = figures.reliability, figures.card.matching
    assert matching is not None  # noqa: S101  checked by `FaceEmbedder`
    figure, axes = blank(
        "Reliability of the probability",
        f"at the prior {matching.prior:g}; dot area: share of pairs; bars: 95 % of a bootstrap over identities",
        f"probability of a pair to be mated, as {figures.card.name} predicts it",
        "share of mated pairs",
    )
    axes.plot([0, 1], [0, 1], color=PALE, linewidth=0.8, linestyle=":")
    axes.vlines(curve.predicted, curve.low, curve.high, color=INK, linewidth=0.9)
    axes.scatter(curve.predicted, curve.observed, np.maximum(20, 500 * curve.weight), color=ACCENT, linewidth=0)
    axes.set_xlim(-0.03, 1.03)
    axes.set_ylim(-0.03, 1.03)
    return png(figure)
