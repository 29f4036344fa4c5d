# The environment of requirements.lock in a container.
#
#   docker build --tag prle .                                 as locked; torch brings its own CUDA libraries
#   docker build --tag prle-cpu --build-arg VARIANT=cpu \
#     --build-arg TORCH_INDEX=ADDRESS .                        a tenth of the size; ADDRESS: an index with torch's CPU wheels
#   docker run --rm --gpus all --volume "$PWD/outputs:/prle/outputs" prle reproduce
ARG PYTHON=3.11
FROM python:${PYTHON}-slim

ARG VARIANT=cuda
ARG TORCH_INDEX=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1
WORKDIR /prle
SHELL ["/bin/bash", "-o", "pipefail", "-c"]

# As in the Makefile: setuptools first, for what is built from source; every file by its hash. The CPU variant takes torch and
# torchvision at the locked versions from another index, whose files have other hashes, and leaves out what only CUDA needs.
COPY requirements.lock .
RUN sed -n '/^setuptools==/,/[^\\]$/p' requirements.lock > /tmp/setuptools.lock \
 && pip install --require-hashes --requirement /tmp/setuptools.lock \
 && awk -v variant="$VARIANT" '/^[a-z]/ { drop = variant == "cpu" && /^(nvidia-|cuda-|triton|torch==|torchvision==)/ } !drop' \
      requirements.lock > /tmp/requirements.lock \
 && pip install --require-hashes --no-deps --no-build-isolation --use-pep517 --requirement /tmp/requirements.lock \
 && case "$VARIANT" in \
      cuda) ;; \
      cpu) pip install --no-deps --index-url "${TORCH_INDEX:?name an index with the CPU wheels of torch}" \
             $(grep -oE '^(torch|torchvision)==[0-9.]+' requirements.lock) ;; \
      *) echo "VARIANT is cuda or cpu, not $VARIANT" >&2; exit 1 ;; \
    esac

COPY . .
RUN pip install --no-deps --no-build-isolation --use-pep517 --editable . \
 && useradd --create-home prle && mkdir -p outputs && chown -R prle outputs
USER prle
VOLUME /prle/outputs
ENTRYPOINT ["prle"]
CMD ["--help"]
