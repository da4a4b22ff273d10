# syntax=docker/dockerfile:1
# Eddy's server as an image, for the CPU or for NVIDIA GPUs:
#
#   docker build -t eddy .
#   docker build -t eddy:gpu --build-arg EXTRA=gpu .
#
# EXTRA          the extra of pyproject.toml that brings ONNX Runtime: cpu or gpu. The GPU's CUDA libraries come as
#                Python wheels, so both variants stand on one slim base; the host brings the driver only.
# PYTHON_TAG     the tag of the base image `python`, down to the patch.
# PYTHON_DIGEST  "@sha256:..." of that tag, for builds that must be the same byte for byte; empty follows the tag.
# VERSION, REVISION, CREATED   what the image's labels say.
ARG EXTRA=cpu
ARG PYTHON_TAG=3.11.14-slim-bookworm
ARG PYTHON_DIGEST=""

FROM python:${PYTHON_TAG}${PYTHON_DIGEST} AS base

# ---- Third-party packages, each at the version and hash of the lock file -------------------------------------------
FROM base AS dependencies
ARG EXTRA
WORKDIR /build
COPY deploy/requirements-${EXTRA}.txt requirements.txt
# pip works from outside: the environment that is shipped holds no installer. Bytecode is made here, because nothing can
# be written where it runs; hash-based and unchecked, because these files never change, and time stamps do not survive
# every way of copying an image.
RUN python3 -m venv /installer \
    && python3 -m venv --without-pip /opt/eddy \
    && /installer/bin/pip --python /opt/eddy/bin/python install \
      --no-cache-dir --no-compile --only-binary :all: --require-hashes -r requirements.txt \
    && /opt/eddy/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/eddy/lib

# ---- Eddy itself, apart: a release changes this small layer only ----------------------------------------------------
FROM dependencies AS application
COPY deploy/requirements-build.txt ./
RUN /installer/bin/pip install --no-cache-dir --require-hashes -r requirements-build.txt
COPY pyproject.toml README.md LICENSE ./
COPY src src
COPY inspection inspection
COPY service service
COPY clients clients
COPY training training
COPY protos protos
RUN /installer/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels . \
    && /installer/bin/pip --python /opt/eddy/bin/python install \
      --no-cache-dir --no-compile --no-deps --no-index --prefix /application /wheels/*.whl \
    && /opt/eddy/bin/python -m compileall -q --invalidation-mode unchecked-hash \
      -s /application -p /opt/eddy /application/lib

# ---- What runs, on a CPU or a GPU -----------------------------------------------------------------------------------------
FROM base AS runtime
RUN groupadd --gid 10001 eddy \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin eddy
ENV PATH=/opt/eddy/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    ORT_DISABLE_TELEMETRY=1
# From what changes least to what changes with every release.
COPY --from=dependencies /opt/eddy /opt/eddy
COPY LICENSE /usr/share/doc/eddy/LICENSE
# The shipped models; a repository of one's own is mounted over them.
COPY models /models
COPY deploy/healthcheck.py /opt/eddy/healthcheck.py
COPY --from=application /application /opt/eddy
USER 10001:10001
WORKDIR /
EXPOSE 8500 8501
# Ready is healthy: every model of the repository is served. Without `-I` Python would look into the working directory.
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
    CMD ["/opt/eddy/bin/python", "-I", "-S", "/opt/eddy/healthcheck.py"]
# SIGTERM drains. Exec form: Python is process 1 and gets the signal itself.
STOPSIGNAL SIGTERM
ENTRYPOINT ["eddy"]
CMD ["serve", "--host", "0.0.0.0", "--model-repository", "/models"]

ARG VERSION=0.1.0
ARG REVISION=""
ARG CREATED=""
LABEL org.opencontainers.image.title="Eddy" \
      org.opencontainers.image.description="Streaming inference for recurrent models over gRPC" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"
