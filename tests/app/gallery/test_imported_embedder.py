"""An embedder from an ONNX file, from its import over its calibration to a collection that is re-embedded with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from models import checkpoint
from tests.app.conftest import started
from tests.app.embedder import random_embedder
from tests.app.gallery.helpers import candidate_ids, enrol, faces_of, portrait, search, wait_until
from tests.app.inference.test_imported_networks import import_file
from tests.conftest import encode
from tests.models.onnx_files import small_network, write_onnx
from tests.training.conftest import write_identities
from training import calibrate
from training.datasets import passages
from training.recipe.config import CameraSection


def write_people(path: Path) -> None:
    """Write a data set of 120 people of one source with five similar images each."""
    random = np.random.default_rng(0)
    rows = []
    for person in range(120):
        base = random.integers(0, 256, (4, 4, 3)).repeat(28, axis=0).repeat(28, axis=1)
        for _ in range(5):
            face = np.clip(base + random.normal(0, 20, base.shape), 0, 255).astype(np.uint8)
            rows.append((Image.fromarray(face), f"made:{person}"))
    write_identities(path, rows)


def test_from_import_to_reembedding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passages, "BURST", CameraSection())  # a random network recognises nobody in a blurred photo
    weights = tmp_path / "weights"
    weights.mkdir()
    random_embedder(weights)
    file = write_onnx(small_network(64), tmp_path / "foreign.onnx", (3, 112, 112))
    import_file(weights, f"onnx:{file}", "--task", "embed", "--mean", "127.5", "--std", "128")
    pair = {name: ("a.png", encode(portrait("eileen"))) for name in ("source", "target")}
    with started(weights, state=tmp_path / "state") as service:
        assert service.put("/collections/doors", json={"keep_crops": True}).status_code == 201
        enrol(service, "eileen")
        enrol(service, "grace")
        refusals = [
            service.post("/verify", params={"model": "foreign"}, files=pair),
            service.put("/collections/hall", json={"embedder": "foreign"}),
            service.post("/collections/doors/reembed", json={"embedder": "foreign"}),
        ]
        for refusal in refusals:
            assert refusal.status_code == 422, refusal.text
            assert "`python -m training.calibrate weights/foreign --data faces`" in refusal.json()["detail"]
        assert service.get("/collections/hall").status_code == 404

        monkeypatch.setenv("VESTIBULE_DATASETS", str(tmp_path / "data"))
        write_people(tmp_path / "data/people/train.parquet")
        result = CliRunner().invoke(calibrate.cli, [str(weights / "foreign"), "--data", "people"])
        assert result.exit_code == 0, result.output
        card = checkpoint.read_card(weights / "foreign")
        assert card.matching is not None
        assert service.post("/models/foreign/reload").json()["change"] == "reloaded"

        verified = service.post("/verify", params={"model": "foreign", "fmr": 0.01}, files=pair)
        assert verified.status_code == 200, verified.text
        assert verified.json()["verified"]
        assert service.put("/collections/hall", json={"embedder": "foreign"}).status_code == 201
        enrol(service, "eileen", collection="hall")
        assert candidate_ids(search(service, portrait("eileen"), collection="hall", fpir=0.01))[0] == "eileen"

        assert service.post("/collections/doors/reembed", json={"embedder": "foreign"}).status_code == 202
        wait_until(lambda: service.get("/collections/doors").json()["embedder"] == "foreign")
        assert candidate_ids(search(service, portrait("eileen"), fpir=0.01))[0] == "eileen"
        # A collection of the embedder stays usable, and the call that created it can be repeated, if its card loses
        # the thresholds.
        checkpoint.write_card(weights / "foreign", card.model_copy(update={"matching": None, "passages": ()}))
        assert service.post("/models/foreign/reload").json()["change"] == "reloaded"
        assert service.put("/collections/hall", json={"embedder": "foreign"}).status_code == 200
        (face,) = faces_of(search(service, portrait("eileen"), collection="hall"))
        assert face["reasons"] == ["NOT_CALIBRATED"]
