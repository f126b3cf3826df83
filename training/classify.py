"""Train a classifier: `python -m training.classify training/recipes/lenet5-mnist.toml`.

On several GPUs: `accelerate launch --num_processes 4 -m training.classify RECIPE`; on several nodes: docs/weights.md.
On a CPU, accelerate's own `--cpu` starts a single process whatever `--num_processes` says; two processes (gloo) are
started by `ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 -m training.classify RECIPE`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.nn import functional as F

from models.registry import build, configure
from models.rejection import MIN_IMAGES, fit_rejection
from models.runtime import TorchRuntime
from models.temperature import fit_temperature
from models.tta import VIEWS, Tta
from training.core.export import TrainedModel, command, export_and_summarise
from training.core.initialise import PretrainedFeatures, initialise_as_identity, set_norms, whiten
from training.core.seeds import derive
from training.core.teachers import Teachers
from training.core.trainer import Learner, gather_rows
from training.datasets.augment import augment, blend, channel_statistics, first_flips, mirror
from training.datasets.batches import Batches, stratified_sample, stratified_split
from training.datasets.images import ImageSet, Indices, load
from training.metrics.classification import classification, predict, probabilities
from training.recipe.config import Recipe


class ClassificationTask:
    """Train with cross-entropy on augmented images; the best epoch has the highest accuracy on the validation split."""

    monitor = "accuracy"
    mode: Literal["max", "min"] = "max"

    def __init__(self, recipe: Recipe, images: ImageSet, accelerator: Accelerator):
        self.recipe = recipe
        self.images = images
        self.pretrained = PretrainedFeatures(recipe) if recipe.model.start else None
        start = self.pretrained.card.config if self.pretrained else {}
        sizes = {"num_classes": len(images.classes), "in_channels": recipe.preprocess.channels}
        self.config = configure(recipe.model.architecture, start | recipe.model.config | sizes)
        self.accelerator = accelerator
        self.teachers = Teachers(recipe, images.classes, accelerator) if recipe.teacher.models else None
        rows, self._held_out = stratified_split(images.labels, recipe.data.validation, recipe.seed)
        self._rows = stratified_sample(images.labels, rows, recipe.data.train, recipe.seed)
        self.held_out_labels = torch.from_numpy(images.labels[self._held_out])
        self._batches = Batches(
            len(self._rows),
            recipe.train.batch_size,
            recipe.seed,
            accelerator.process_index,
            accelerator.num_processes,
        )
        self.steps_per_epoch = self._batches.per_epoch
        module = self._initial_network()
        self._features = module.get_submodule("features")
        if recipe.model.freeze:
            self._features.requires_grad_(False)
        self._learner = Learner(module, recipe.train, self.steps_per_epoch, accelerator)
        self.learners = {"classifier": self._learner}
        self._flips = first_flips(len(images.labels), recipe.seed)
        self._statistics = channel_statistics(images.images, self._rows, recipe.augment, recipe.preprocess)

    def _initial_network(self) -> nn.Module:
        recipe = self.recipe
        torch.manual_seed(derive(recipe.seed, "weights"))
        module = build(recipe.model.architecture, asdict(self.config))
        if recipe.train.identity:
            initialise_as_identity(module)
        set_norms(module, recipe.train)
        if recipe.train.whiten:
            first = whiten(module, self.images, self._rows, recipe.preprocess)
            first.weight.requires_grad_(not recipe.train.freeze_whitening)
        if self.pretrained:
            self.pretrained.copy_to(module)
        return module

    def step(self, epoch: int, index: int, generator: torch.Generator) -> Mapping[str, Tensor]:
        """See `TrainingTask`."""
        rows = self._rows[self._batches(epoch, index)]
        device = self.accelerator.device
        pixels = torch.from_numpy(np.asarray(self.images.images[rows])).to(device)  # uint8 [N, H, W, C]
        labels = torch.from_numpy(self.images.labels[rows]).to(device)
        images = pixels.movedim(-1, 1).float()
        if self.recipe.augment.flip == "alternating":
            images = mirror(images, self._flips[rows] ^ bool(epoch % 2))
        images = augment(images, self.recipe.augment, generator, self._statistics)
        targets = labels
        if self.recipe.augment.mixup or self.recipe.augment.cutmix:
            targets = F.one_hot(labels, len(self.images.classes)).float()
            images, targets = blend(images, targets, self.recipe.augment, generator)
        taught = self.teachers.logits(images) if self.teachers else None
        images = self._learner.arrange(self.recipe.preprocess.normalise(images.movedim(1, -1)))
        self._learner.model.train()
        if self.recipe.model.freeze:
            self._features.eval()  # batch norms keep their statistics, and nothing is dropped out
        logits, loss = self._logits_and_loss(images, targets, taught)
        self._learner.update(loss)
        return {"loss": loss.detach(), "accuracy": (logits.argmax(dim=1) == labels).float().mean()}

    def _logits_and_loss(self, images: Tensor, targets: Tensor, taught: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the classifier's logits, and its loss plus the weighted losses of its auxiliary classifiers, if any.

        `targets` are labels [N] or shares of classes [N, K], `taught` the teachers' logits [N, K], if there are any.

        Szegedy et al., "Going Deeper with Convolutions", CVPR 2015.
        """
        train, model = self.recipe.train, self._learner.model
        outputs = model(images, auxiliary=True) if has_auxiliary(self.config) else (model(images),)

        def loss(logits: Tensor) -> Tensor:
            labelled = F.cross_entropy(logits, targets, label_smoothing=train.label_smoothing)
            if self.teachers is None or taught is None:
                return labelled
            return self.teachers.loss(logits, taught, labelled)

        main, *auxiliary = map(loss, outputs)
        return outputs[0], main + train.auxiliary_weight * sum(auxiliary)

    def validate(self) -> Mapping[str, float]:
        """See `TrainingTask`."""
        figures = classification(probabilities(self.held_out_logits(self._learner.network), 1.0), self.held_out_labels)
        return {"loss": figures["nll"], "accuracy": figures["accuracy"]}

    def held_out_logits(self, network: nn.Module, tta: Tta = "none") -> Tensor:
        """Return the logits of the validation split's views [V, validation, K] on the CPU.

        Each process computes its share.
        """
        runtime = TorchRuntime(network, self.accelerator.device)

        def compute(rows: Indices) -> Tensor:
            logits = predict(runtime, self.images, self._held_out[rows], self.recipe.preprocess, tta=tta)
            return logits.movedim(0, 1).contiguous()  # [rows, V, K]

        return gather_rows(self.accelerator, len(self._held_out), compute).movedim(0, 1)

    def best_model(self, networks: Mapping[str, Any]) -> TrainedModel:
        """Choose temperature and test-time augmentation on the validation split, and calibrate the rejection if it is
        large enough; see `ExportTask`.

        The chosen views have the lowest NLL among those that lose no accuracy against the plain image.
        """
        recipe, labels = self.recipe, self.held_out_labels
        network, config = self._served(networks["classifier"])
        logits = {kind: self.held_out_logits(network, kind) for kind in ("six-view", "ten-crop")}
        logits |= {kind: logits["six-view"][: VIEWS[kind]] for kind in ("none", "flip")}  # the first of all views
        temperature = fit_temperature(logits["none"][0], labels)
        measured = {kind: classification(probabilities(logits[kind], temperature), labels) for kind in VIEWS}
        plain = measured["none"]
        accurate = [kind for kind in VIEWS if measured[kind]["accuracy"] >= plain["accuracy"]]
        tta = min(accurate, key=lambda kind: measured[kind]["nll"])
        data = f"{recipe.data.name} validation ({recipe.data.validation:,} cut from train)"
        rejection = fit_rejection(logits["none"][0].numpy(), data) if len(labels) >= MIN_IMAGES else None
        calibration = {"temperature": temperature, "tta": tta, "rejection": rejection}
        return TrainedModel(
            network,
            config,
            figures=plain | ({} if tta == "none" else {f"{name}_tta": value for name, value in measured[tta].items()}),
            data=data,
            card={"classes": self.images.classes, **calibration, **self._provenance()},
        )

    def _served(self, state: Mapping[str, Tensor]) -> tuple[nn.Module, Any]:
        """Return the network as it is served, without auxiliary classifiers, and its config.

        A new module, since the trained one may be wrapped or in mixed precision. Its weights have the memory format of
        the training; with the default one, a CPU takes twice the time.
        """
        config = self.config
        if has_auxiliary(config):
            config = replace(config, auxiliary=False)
            state = {name: value for name, value in state.items() if not name.startswith("auxiliary.")}
        network = build(self.recipe.model.architecture, asdict(config))
        network.load_state_dict(dict(state))
        if self.recipe.train.channels_last:
            network = network.to(memory_format=torch.channels_last)
        return network, config

    def _provenance(self) -> dict[str, str]:
        """Add the data and licences of the pretrained model and the teachers to those that the recipe states."""
        section = self.recipe.card
        data, license = section.data, section.license
        started = (self.pretrained.card,) if self.pretrained else ()
        taught = self.teachers.cards if self.teachers else ()
        for verb, clause, cards in (
            ("started from", "which it started from", started),
            ("taught by", "which taught it", taught),
        ):
            for card in cards:
                data += f"; {verb} {card.name} {card.version}, trained on: {card.data}"
                license += f"; of {card.name}, {clause}: {card.license}"
        return {"data": data, "license": license}


def has_auxiliary(config: Any) -> bool:
    """Return whether the network has auxiliary classifiers, whose logits `forward(images, auxiliary=True)` adds."""
    return bool(getattr(config, "auxiliary", False))


def setup(recipe: Recipe, accelerator: Accelerator, _: Path) -> ClassificationTask:
    """Load the data and build the network."""
    with accelerator.local_main_process_first():  # the main process decodes, the others read its result
        images = load(recipe.data.name, "train", recipe.preprocess)
    return ClassificationTask(recipe, images, accelerator)


cli = command(
    Recipe,
    setup,
    export_and_summarise,
    "Train a classifier by its recipe; the model and its card are written to the run's export/.",
)

if __name__ == "__main__":
    cli()
