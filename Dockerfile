# CPU:  docker build -t pri3d .
# CUDA: docker build -t pri3d:cuda --build-arg TORCH_INDEX=https://pypi.org/simple .   (PyPI has the CUDA build)
# Use:  docker run --rm -v "$PWD:/work" pri3d check scans/kitchen     (CUDA: add --gpus all)
FROM python:3.11-slim

# PyTorch's CPU build by default: no CUDA libraries, which are most of an image that has them.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=imagenet,video

ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1

# hadolint ignore=DL3013 (the newest that fits pyproject.toml)
RUN pip install torch torchvision --index-url ${TORCH_INDEX}

COPY pyproject.toml README.md LICENSE /src/
COPY src /src/src
RUN pip install "/src[${EXTRAS}]" && rm -rf /src && pri3d --version

# Caches of weights and prepared recordings are in a place that any user may write to, and that a volume may hold.
RUN useradd --create-home pri3d && mkdir -p /work /cache && chown pri3d /work /cache
ENV PRI3D_CACHE=/cache/pri3d TORCH_HOME=/cache/torch HF_HOME=/cache/huggingface
USER pri3d
WORKDIR /work

ENTRYPOINT ["pri3d"]
CMD ["--help"]
