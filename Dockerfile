# One image for every role: hzzray, its bridge and app, and Ray itself. Runs as a numeric user, and on a read-only root.
ARG BASE=python:3.11-slim-bookworm

# What all of it needs, pinned by hash: built again only when the lock changes.
FROM ${BASE} AS dependencies
RUN python -m venv --without-pip /opt/venv
COPY requirements.lock requirements-image.lock requirements-uv.lock /tmp/
# uv takes a quarter of pip's time; pip goes on where it finds no way out, as it has settings of its own for that.
RUN --mount=type=cache,target=/root/.cache \
    export PIP_QUIET=1 PIP_ROOT_USER_ACTION=ignore PIP_DISABLE_PIP_VERSION_CHECK=1 \
 && set -- --require-hashes --requirement /tmp/requirements.lock --requirement /tmp/requirements-image.lock \
 && pip install --require-hashes --requirement /tmp/requirements-uv.lock \
 && { uv pip install --quiet --system-certs --compile-bytecode --link-mode copy --python /opt/venv/bin/python "$@" \
      || pip --python /opt/venv install "$@"; } \
 # Ray's Java libraries, headers, and what packages test themselves with.
 && rm -rf /opt/venv/lib/python*/site-packages/ray/jars /opt/venv/lib/python*/site-packages/pyarrow/include \
 && find /opt/venv -type d \( -name tests -o -name test \) -path '*/site-packages/*' -prune \
      \( -path '*/numba/*' -o -path '*/pandas/*' -o -path '*/pyarrow/*' -o -path '*/numpy/*' -o -path '*/matplotlib/*' \) \
      -exec rm -rf {} +

# This project as a wheel.
FROM ${BASE} AS wheel
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --quiet --root-user-action ignore --disable-pip-version-check hatchling==1.27.0
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY hzzray hzzray
COPY bridge bridge
COPY kuberay kuberay
RUN pip wheel --quiet --no-deps --no-build-isolation --no-cache-dir --wheel-dir /wheels .

FROM ${BASE}
# The user that Ray's own images have, which KubeRay's samples expect. Volumes take over the folders' owner.
RUN groupadd --gid 1000 hzzray && useradd --uid 1000 --gid 1000 --create-home hzzray \
 && install -d -o 1000 -g 1000 /runs /data /var/cache/hzzray /srv/hzzray
COPY --from=dependencies /opt/venv /opt/venv
# A login shell, which KubeRay starts nodes in, has a PATH of its own.
RUN ln -s /opt/venv/bin/hzzray /opt/venv/bin/ray /opt/venv/bin/streamlit /usr/local/bin/
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    HZZRAY_CACHE=/var/cache/hzzray HZZRAY_RUNS=/runs HZZRAY_ANALYSES=/analyses MPLCONFIGDIR=/tmp/matplotlib \
    RAY_USAGE_STATS_ENABLED=0 RAY_ENABLE_UV_RUN_RUNTIME_ENV=0 RAY_DEDUP_LOGS=0 RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=0 \
    NUMBA_NUM_THREADS=1 OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 \
    XRD_CONNECTIONWINDOW=10 XRD_CONNECTIONRETRY=3 XRD_STREAMERRORWINDOW=30 XRD_REQUESTTIMEOUT=60
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip --python /opt/venv install --quiet --no-deps --no-cache-dir --root-user-action ignore \
      --disable-pip-version-check /wheels/*.whl
COPY --chmod=755 deploy/answers /usr/local/bin/hzzray-answers
COPY --chmod=755 deploy/driver /usr/local/bin/hzzray-driver
COPY --chmod=755 deploy/head /usr/local/bin/hzzray-head
COPY --chmod=755 deploy/loader /usr/local/bin/hzzray-loader
COPY --chmod=755 deploy/worker /usr/local/bin/hzzray-worker
WORKDIR /srv/hzzray
COPY .streamli[t] .streamlit
COPY --chmod=755 app app
RUN python -m compileall -q app
# Analyses that workers may use beside ours: put yours there, in an image of your own or by a volume.
COPY examples /analyses
USER 1000:1000
# Kernels are compiled here, for the machine's own CPU; another kind of CPU compiles them at its first task.
RUN python -c 'from hzzray import analyses; analyses.warm_up()'
ARG VERSION=0.2.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="hzzray" \
      org.opencontainers.image.description="The ATLAS Open Data H→ZZ*→4ℓ analysis as a live, exact, distributed pipeline on Ray" \
      org.opencontainers.image.authors="The hzzray developers" \
      org.opencontainers.image.documentation="README.md and docs/ of the source" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
ENTRYPOINT []
CMD ["hzzray", "--help"]
