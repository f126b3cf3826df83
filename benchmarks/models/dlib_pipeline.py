"""dlib's face verification, as its own examples put it together: another service's speed to compare ours with.

King, "Dlib-ml: A Machine Learning Toolkit", JMLR 10, 2009: the frontal HOG detector, five landmarks, the ResNet of 2017
(99.38 % on LFW), whose 128 numbers are of one person where they are nearer than 0.6. Of the package with the
model files only these two are read, which are CC0; that of 68 landmarks is not free for commercial use.
"""

from __future__ import annotations

import io
import time
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from training.teach import EMBEDDER, model_file

LANDMARKS = "shape_predictor_5_face_landmarks.dat"


@dataclass(frozen=True)
class Compared:
    """How long each stage took, of both pictures together; the Euclidean distance, None without a face in both."""

    seconds: dict[str, float]
    distance: float | None


class DlibPipeline:
    """Two encoded pictures, compared by their largest faces, on one thread.

    Raises:
        ImportError: one of the two packages is not installed.
    """

    THRESHOLD: ClassVar[float] = 0.6

    def __init__(self, upsample: int = 0):
        import dlib

        self.version: str = dlib.__version__
        self._upsample = upsample
        self._detect = dlib.get_frontal_face_detector()
        self._landmarks = dlib.shape_predictor(model_file(LANDMARKS))
        self._embed = dlib.face_recognition_model_v1(model_file(EMBEDDER))

    def __call__(self, source: bytes, target: bytes) -> Compared:
        """Decode, detect, embed; where no face is found in one of them, nothing is embedded."""
        moments = [time.perf_counter()]
        pictures = [np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in (source, target)]
        moments.append(time.perf_counter())
        faces = [self._detect(picture, self._upsample) for picture in pictures]
        moments.append(time.perf_counter())
        vectors = [self._vector(*both) for both in zip(pictures, faces, strict=True)] if all(map(len, faces)) else []
        distance = float(np.linalg.norm(np.subtract(*vectors))) if vectors else None
        moments.append(time.perf_counter())
        return Compared(dict(zip(("decode", "detect", "embed"), np.diff(moments).tolist(), strict=True)), distance)

    def _vector(self, picture: Any, faces: Any) -> Any:
        shape = self._landmarks(picture, max(faces, key=lambda face: face.area()))
        return np.array(self._embed.compute_face_descriptor(picture, shape))
