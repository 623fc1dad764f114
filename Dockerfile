# errorbar in two images. Most people want docker-compose.yml, which builds and runs both.
#
#   docker build --target service  --tag errorbar-service  .     serves model files; no torch, no training code
#   docker build --target training --tag errorbar-training .     trains on a table and publishes the model file
#
# Build arguments:
#   BASE                   Python image to stand on: Debian-like with glibc, Python 3.11 or newer
#   PIP_INDEX_URL          package index to install from (pip's own variable)
#   PIP_EXTRA_INDEX_URL    another index beside it, such as the one of CPU-only wheels that PyTorch's installation page names:
#                          without it, the training image on x86-64 may hold some GB of CUDA libraries
#   EXTRAS                 for the service: arrow, tracing, or both with a comma between
#   VERSION, REVISION      what the images' labels say they were built from

ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS base
# A fixed number, so that Kubernetes can see that it isn't root and volumes keep their owner. An empty volume takes over /models' owner.
RUN groupadd --gid 10001 errorbar \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin errorbar \
    && install --directory --owner=10001 --group=10001 /models
# Unbuffered: a log line is out when it is written, also the last one before a crash. ONNX Runtime's official builds send
# their maker what they run, and keep an id of the machine for it, unless they are told not to.
ENV PATH=/opt/venv/bin:$PATH PYTHONPATH=/app PYTHONUNBUFFERED=1 ORT_DISABLE_TELEMETRY=1

# What is to be installed, one file a purpose. Later stages copy these files, and a copy with the same content keeps their layers:
# neither a change of code nor one of the linter's settings in pyproject.toml installs anything again.
FROM base AS requirements
ARG EXTRAS
COPY pyproject.toml .
RUN python <<'PYTHON'
import os
import tomllib
from pathlib import Path

document = tomllib.loads(Path("pyproject.toml").read_text())
project = document["project"]
extras = [one for extra in os.environ.get("EXTRAS", "").split(",") if extra for one in project["optional-dependencies"][extra]]
for name, requirements in {
    "build": document["build-system"]["requires"],
    "service": project["dependencies"] + extras,
    "training": project["dependencies"] + project["optional-dependencies"]["training"],
}.items():
    Path(f"/{name}.txt").write_text("\n".join(requirements) + "\n")
PYTHON

FROM base AS builder
ARG PIP_INDEX_URL PIP_EXTRA_INDEX_URL
WORKDIR /build
RUN python -m venv --without-pip /opt/venv
COPY --from=requirements /build.txt .
RUN --mount=type=cache,target=/root/.cache/pip pip install --root-user-action=ignore --requirement build.txt
COPY constraints.txt .

FROM builder AS service-builder
COPY --from=requirements /service.txt .
RUN --mount=type=cache,target=/root/.cache/pip \
    pip --python /opt/venv/bin/python install --constraint constraints.txt --requirement service.txt
# Built from these two packages alone, errorbar comes without the training code, and still knows its version.
COPY pyproject.toml README.md LICENSE ./
COPY models models
COPY service service
RUN pip install --root-user-action=ignore --no-deps --no-build-isolation --target /app .

FROM builder AS training-builder
COPY --from=requirements /training.txt .
RUN --mount=type=cache,target=/root/.cache/pip \
    pip --python /opt/venv/bin/python install --constraint constraints.txt --requirement training.txt
COPY pyproject.toml README.md LICENSE ./
COPY models models
COPY training training
RUN pip install --root-user-action=ignore --no-deps --no-build-isolation --target /app .

FROM base AS training
COPY --from=training-builder /opt/venv /opt/venv
COPY --from=training-builder /app /app
COPY scripts/train-and-publish.sh /app/
# The imports prove the image, and leave the bytecode of the standard library behind, which the base image doesn't have.
RUN python -c "import training.train" && python -m training dataset diabetes >/app/diabetes.csv
# Nobody can write bytecode from here on; matplotlib wants a place for its cache of fonts.
ENV PYTHONDONTWRITEBYTECODE=1 MPLCONFIGDIR=/tmp/matplotlib
USER 10001:10001
# Tables are mounted here and may be named without the folder.
WORKDIR /data
ENTRYPOINT ["/app/train-and-publish.sh", "--repository", "/models"]
CMD ["/app/diabetes.csv", "--target", "progression"]
ARG VERSION=unreleased REVISION=unknown
LABEL org.opencontainers.image.title="errorbar training" \
    org.opencontainers.image.description="Trains on a table and publishes one calibrated model file" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}"

FROM base AS service
COPY --from=service-builder /opt/venv /opt/venv
COPY --from=service-builder /app /app
RUN python -c "import service.cli, service.server"
ENV PYTHONDONTWRITEBYTECODE=1 ERRORBAR_REPOSITORY=/models ERRORBAR_HOST=0.0.0.0 ERRORBAR_PORT=8000
USER 10001:10001
WORKDIR /app
EXPOSE 8000
# Reads the same ERRORBAR_* variables as the service: another port is set by ERRORBAR_PORT, not by --port.
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --start-interval=1s CMD ["python", "-m", "service", "health"]
ENTRYPOINT ["python", "-m", "service"]
ARG VERSION=unreleased REVISION=unknown
LABEL org.opencontainers.image.title="errorbar service" \
    org.opencontainers.image.description="Serves calibrated model files: mean, std and prediction intervals over HTTP" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}"
