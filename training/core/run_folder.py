"""The folder of a training run.

    recipe.toml     the resolved recipe, written before the first step
    last.pt         the state to resume from
    best.pt         the best weights so far; like last.pt a `torch.save` file with its sha256 at the end
    history.json    a row for every epoch; the same in curves.png (drawn at the end) and tensorboard/
    export/<name>/  the served model, see `training.core.export`

Only the main process writes and reads, see `training.core.distributed`.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import json
import os
import platform
import re
import shutil
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli_w
import torch
from pydantic import BaseModel, ValidationError

from models.checkpoint import bytes_of, write_atomically
from training.core.errors import RunError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

Row = dict[str, float]

_DIGEST = hashlib.sha256().digest_size
_PACKAGES = ("torch", "torchvision", "accelerate", "numpy", "pillow")


@dataclass
class Progress:
    """The progress of a run, without the state of its networks.

    `step` counts optimizer steps since the beginning; `statistics` are this epoch's sums so far; `best_epoch` counts
    from 1 and is 0 before the first validation; `wall_time_s` does not include steps that a kill lost.
    """

    step: int = 0
    statistics: dict[str, float] = field(default_factory=dict)
    best_epoch: int = 0
    best_value: float = 0.0
    history: list[Row] = field(default_factory=list)
    wall_time_s: float = 0.0


class Run:
    """A run's folder. Methods that write do nothing unless the process is `main`."""

    def __init__(self, folder: Path, *, main: bool = True):
        self.folder = folder
        self.main = main
        self._writer: SummaryWriter | None = None

    def begin(self, recipe: BaseModel, *, resume: bool = False, overwrite: bool = False) -> None:
        """Start a run of `recipe` in the folder, or check that the folder has a run of the same recipe to resume.

        A setting that is newer than the run, and so missing in its recipe, has its default value.

        Raises:
            RunError: the folder has a run already; or, if `resume`, no run or a run of another recipe.
        """
        if not self.main:
            return
        path = self.folder / "recipe.toml"
        text = tomli_w.dumps(_document(recipe))
        if resume:
            if not path.is_file():
                raise RunError(f"{path} is missing: there is no run to resume")
            changed = _differences(_resolved(type(recipe), path), tomllib.loads(text))
            if changed:
                raise RunError(f"{path} is not the recipe given; it differs in {', '.join(changed)}")
            return
        if path.exists() and not overwrite:
            raise RunError(f"{self.folder} already holds a run: --resume continues it, --overwrite deletes it")
        if path.exists():
            shutil.rmtree(self.folder)
        write_atomically(path, text.encode())

    def save_last(self, progress: Progress, learners: Mapping[str, Any], scaler: Any, processes: int) -> None:
        """Replace last.pt. It needs no state of random generators, see `training.core.seeds`."""
        state = {"progress": asdict(progress), "learners": dict(learners), "scaler": scaler, "processes": processes}
        self._save("last.pt", state | {"threads": torch.get_num_threads()})

    def load_last(self, processes: int) -> dict[str, Any]:
        """Return the arguments of `save_last` by name, and the number of `threads` at that time.

        Raises:
            RunError: last.pt is missing or damaged; best.pt is missing, damaged or older than last.pt says; the run was
                started with another number of processes.
        """
        state = self._load("last.pt")
        state["progress"] = Progress(**state["progress"])
        if state["processes"] != processes:
            raise RunError(f"the run was started with {state['processes']} processes, not {processes}")
        if state["progress"].best_epoch and self.load_best()["epoch"] < state["progress"].best_epoch:
            raise RunError(f"{self.folder / 'best.pt'} is older than last.pt says")
        return state

    def save_best(self, epoch: int, networks: Mapping[str, Any]) -> None:
        """Replace best.pt: the state of each network as it was validated after `epoch`."""
        self._save("best.pt", {"epoch": epoch, "networks": dict(networks)})

    def load_best(self) -> dict[str, Any]:
        """Return the arguments of `save_best` by name.

        Raises:
            RunError: best.pt is missing or damaged.
        """
        return self._load("best.pt")

    def _save(self, name: str, state: Mapping[str, Any]) -> None:
        if self.main:
            data = bytes_of(lambda file: torch.save(dict(state), file))
            # torch.load does not notice a flipped byte, and ignores bytes after its zip archive.
            write_atomically(self.folder / name, data + hashlib.sha256(data).digest())

    def _load(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        try:
            sealed = path.read_bytes()
        except OSError as error:
            raise RunError(f"{path}: {error.strerror}; the run cannot be resumed without it") from error
        data = sealed[:-_DIGEST]
        if hashlib.sha256(data).digest() != sealed[-_DIGEST:]:
            raise RunError(f"{path} is damaged: its sha256 does not match")
        state: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        return state

    def log(self, history: Sequence[Row]) -> None:
        """Write history.json, and its last row to TensorBoard. A row's `epoch` counts from 1."""
        if not self.main:
            return
        write_atomically(self.folder / "history.json", (json.dumps(history, indent=1) + "\n").encode())
        row = history[-1]
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # Drops rows of later epochs, which a killed run may have written.
            self._writer = SummaryWriter(self.folder / "tensorboard", purge_step=int(row["epoch"]))
        for name, value in row.items():
            self._writer.add_scalar(name, value, int(row["epoch"]))

    def finish(self, progress: Progress) -> None:
        """Draw curves.png and close all open files."""
        if self.main:
            write_atomically(self.folder / "curves.png", _curves(progress, self.folder.name))
        if self._writer is not None:
            self._writer.close()


def _document(recipe: BaseModel) -> dict[str, Any]:
    """Return the recipe as a TOML document, which has no null: fields that are None are left out."""
    return recipe.model_dump(mode="json", exclude_none=True)


def _resolved(form: type[BaseModel], path: Path) -> dict[str, Any]:
    """Return a run's recipe with the defaults of `form` filled in, or unchanged if it is not valid for `form`."""
    document = tomllib.loads(path.read_text())
    try:
        return _document(form.model_validate(document))
    except ValidationError:
        return document


def _differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    """Return the dotted names of the keys whose values differ between two TOML documents."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [] if old == new else [prefix]
    return [
        name
        for key in sorted(old.keys() | new.keys())
        for name in _differences(old.get(key), new.get(key), f"{prefix}.{key}".lstrip("."))
    ]


def _curves(progress: Progress, title: str) -> bytes:
    """Return a PNG with a panel for each figure that shows its `train/` and `validation/` curves and the best epoch."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    row = progress.history[-1]
    panels = [*dict.fromkeys(name.partition("/")[2] for name in row if "/" in name), "lr"]
    epochs = [row["epoch"] for row in progress.history]
    figure = Figure(figsize=(5.2 * len(panels), 4.2), layout="constrained")
    figure.suptitle(title)
    for number, panel in enumerate(panels, start=1):
        axes = figure.add_subplot(1, len(panels), number)
        names = [name for name in row if name.rpartition("/")[2] == panel]
        curves = {name.partition("/")[0]: [row[name] for row in progress.history] for name in names}
        for label, curve in curves.items():
            axes.plot(epochs, curve, marker=".", label=label)
        values = [value for curve in curves.values() for value in curve]
        if panel != "lr" and 0 < 20 * min(values) < max(values):
            axes.set_yscale("log")
        axes.axvline(progress.best_epoch, color="grey", linestyle=":", label="best epoch")
        axes.set(title=panel, xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    return bytes_of(lambda file: figure.savefig(file, format="png", dpi=110))


def hardware(device: torch.device) -> str:
    """Return a description of the processor, as `AMD EPYC, 2 cores, 2 threads` or `NVIDIA H100`."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.+)", cpuinfo.read_text() if cpuinfo.is_file() else "")
    processor = model[1].strip() if model else platform.machine()
    return f"{processor}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that affect results."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in _PACKAGES}
