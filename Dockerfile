# The image in TGI's place: same entrypoint, same variables, same port, models in /data.
#   docker build -t penstock .                            for CPUs
#   docker build -t penstock --build-arg TORCH=cu130 .    for NVIDIA GPUs
FROM rust:1.95-slim-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev python3-venv && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
# Shown by --version and /info.
ARG PENSTOCK_COMMIT= DOCKER_LABEL=
RUN python3 -m venv /build && /build/bin/pip wheel --no-deps --wheel-dir /wheels ./kernels .

FROM python:3.12-slim-bookworm
# PyTorch for a processor (cpu) or for a version of CUDA.
ARG TORCH=cpu
COPY --from=build /wheels /wheels
# Triton compiles the part of a kernel that starts it where it runs; transformers converts older tokenizers.
RUN if [ "$TORCH" != cpu ]; then apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*; fi
RUN pip install --no-cache-dir uv && uv pip install --system --no-cache --torch-backend "$TORCH" /wheels/*.whl transformers sentencepiece && rm -rf /wheels
RUN ln -s launcher "$(dirname "$(command -v launcher)")/text-generation-launcher"
ENV HF_HOME=/data PORT=80 PYTHONDONTWRITEBYTECODE=1
EXPOSE 80
ENTRYPOINT ["launcher"]
