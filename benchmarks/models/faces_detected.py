"""Every picture of LFW's development view: is its face found, and are landmarks and crops those of other code?

    python -m benchmarks.models.faces_detected [--data ../shared/data/lfw-view1]

The other code is the published ONNX file run by onnxruntime, a decoding by plain loops, and OpenCV's resize and warp.
Writes benchmarks/results/faces_detected.csv, one row a picture. The distance of landmarks is the mean over the five, in
pixels of a picture 256 pixels wide; that of crops the mean over pixels and channels, in grey levels.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from models import checkpoint
from models.align import align, measure
from models.detection_scale import CenterFaceDetector
from models.detector import Detector, Face
from tests.models.centerface import PublishedCenterFace, opencv_crop

RESULTS = Path(__file__).parents[1] / "results"


def compare(path: Path, detector: Detector, published: PublishedCenterFace) -> dict[str, object]:
    """One row of the table."""
    with Image.open(path) as file:
        picture = file.convert("RGB")
    started = time.perf_counter()
    faces = detector(picture)
    seconds = time.perf_counter() - started
    theirs = published.faces(picture)
    row: dict[str, object] = {
        "picture": path.name,
        "faces": len(faces),
        "faces_onnxruntime": len(theirs),
        "detect_ms": f"{1000 * seconds:.1f}",
    }
    if not faces or not theirs:
        return row
    face = max(faces, key=lambda face: face.area)
    # Not theirs of the largest area: their boxes are not cut off at the picture's edge, so that may be another face.
    other = min(theirs, key=lambda other: distance(face, other))
    crop = align(picture, face.landmarks)
    grey_levels = np.abs(crop.astype(int) - opencv_crop(picture, face.landmarks)).mean()
    row |= {"landmarks_px": f"{distance(face, other) * 256 / picture.width:.6f}", "crop_levels": f"{grey_levels:.4f}"}
    return row | {name: f"{value:.4f}" for name, value in asdict(measure(face, crop)).items()}


def distance(face: Face, other: Face) -> float:
    """Mean distance of two faces' landmarks in pixels."""
    return float(np.linalg.norm(np.subtract(face.landmarks, other.landmarks), axis=1).mean())


def report(rows: list[dict[str, object]]) -> None:
    """The table's summary."""
    found = [row for row in rows if "landmarks_px" in row]
    print(f"{len(rows)} pictures, a face in {sum(bool(row['faces']) for row in rows)}")
    print(f"as many faces as onnxruntime finds: {sum(row['faces'] == row['faces_onnxruntime'] for row in rows)}")
    for column in ("landmarks_px", "crop_levels", "detect_ms"):
        values = np.array([float(str(row[column])) for row in found])
        print(f"{column}: median {np.median(values):.6f}, mean {values.mean():.6f}, largest {values.max():.6f}")


def main() -> None:
    """Run on one thread, write, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("VESTIBULE_DATASETS", "data")) / "lfw-view1"
    parser.add_argument("--data", type=Path, default=default)
    parser.add_argument("--weights", type=Path, default=Path("weights/centerface"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    network, card = checkpoint.load(arguments.weights)
    detector, published = CenterFaceDetector(network, card.preprocess), PublishedCenterFace()
    paths = sorted(arguments.data.rglob("*.jpg"))
    rows = [compare(path, detector, published) for path in paths]
    columns = max((list(row) for row in rows), key=len)
    table = io.StringIO()
    writer = csv.DictWriter(table, columns, restval="")
    writer.writeheader()
    writer.writerows(rows)
    checkpoint.write_atomically(RESULTS / "faces_detected.csv", table.getvalue().encode())
    report(rows)


if __name__ == "__main__":
    main()
