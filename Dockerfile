# oasis-monai in a container that runs without root and with a read-only file system: docs/howto/container.md
# TORCH_INDEX: the address of PyTorch's CPU-only packages makes the image 5 GB smaller; without it, the image runs on CPU and NVIDIA GPU
FROM python:3.11-slim-bookworm AS build
WORKDIR /src
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.11-slim-bookworm
ARG TORCH_INDEX=""
COPY constraints.txt /tmp/constraints.txt
COPY --from=build /wheels /tmp/wheels
RUN if [ -n "$TORCH_INDEX" ]; then pip install --no-cache-dir -c /tmp/constraints.txt --index-url "$TORCH_INDEX" torch; fi \
    && pip install --no-cache-dir -c /tmp/constraints.txt /tmp/wheels/*.whl \
    && rm -r /tmp/wheels /tmp/constraints.txt \
    && useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin oasis \
    && mkdir /work && chown oasis /work
# caches of libraries go where a read-only container has its one writable place
ENV HOME=/tmp MPLCONFIGDIR=/tmp/matplotlib PYTHONDONTWRITEBYTECODE=1
USER 10001
WORKDIR /work
ENTRYPOINT ["oasis-monai"]
CMD ["--help"]
