# Build:  docker build -t rlhf-precision .
# Run:    docker run --gpus all \
#             -v "$(pwd)/results:/workspace/rlhf-precision-forensics/results" rlhf-precision
#
# The base must have torch >= 2.6 and Python >= 3.11; setup.sh keeps its torch and installs the rest.
ARG BASE=pytorch/pytorch:2.8.0-cuda12.8-cudnn9-runtime
FROM ${BASE}

# The system Python of newer base images is externally managed (PEP 668); a container may write to it.
ENV PIP_BREAK_SYSTEM_PACKAGES=1 \
    PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1

WORKDIR /workspace/rlhf-precision-forensics
COPY . .
RUN ./setup.sh

VOLUME /workspace/rlhf-precision-forensics/results
ENTRYPOINT ["./runpod_start.sh"]
CMD ["--quick"]
