"""KServe's Python server. Its batcher is another container, beside the server in Kubernetes: here there is none."""

from __future__ import annotations

import base64
import sys
from pathlib import Path
from typing import Any

from kserve import Model, ModelServer

from benchmarks.serving.peer_servers.classifier import Classifier, Decoder

NAME = "classifier"


class Served(Model):  # type: ignore[misc]
    """The V1 protocol: pictures as base64."""

    def __init__(self, folder: Path, runtime: str):
        super().__init__(NAME)
        self._decode, self._classifier = Decoder(folder), Classifier(folder, runtime)
        self.ready = True

    def predict(self, payload: dict[str, Any], headers: dict[str, str] | None = None) -> dict[str, Any]:
        """The instances of one request."""
        pictures = [self._decode(base64.b64decode(one["image"]["b64"])) for one in payload["instances"]]
        return {"predictions": self._classifier(pictures)}


def main(folder: str, port: str, runtime: str) -> None:
    """Serve until told to stop."""
    del sys.argv[1:]  # KServe reads them
    server = ModelServer(http_port=int(port), enable_grpc=False, access_log_format=None)
    server.start([Served(Path(folder), runtime)])


if __name__ == "__main__":
    main(*sys.argv[1:])
