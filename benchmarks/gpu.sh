#!/bin/bash
# Everything that wants a GPU, unattended: the tests marked gpu; how fast its runtimes are and how near to torch's; the
# service on it; the training queue: the CIFAR-10 networks at the length that two processor cores have no time for,
# EfficientNet at its paper's resolution, the embedder, the generators of faces and the denoiser by their recipes.
#
#     VESTIBULE_DATASETS=... benchmarks/gpu.sh RESULTS [EPOCHS]
#
# Needs an environment with the `train` and `dev` dependencies and a CUDA build of torch in front of PATH, and wrk for
# the service. RESULTS then holds gpu.log, the CSV files of speed, agreement and serving, the networks with their
# evaluated cards in weights/, the queue's log in runs/ (or in VESTIBULE_RUNS), and zoo.md with the CIFAR-10 networks.
# EPOCHS (default 60) is for each of these. Started again, it continues where it was stopped.
set -euo pipefail

results=$(mkdir -p "$1" && cd "$1" && pwd)
epochs=${2:-60}
cd "$(dirname "$0")/.."
VESTIBULE_RUNS=${VESTIBULE_RUNS:-$results/runs}
export VESTIBULE_RUNS

# These are trained for EPOCHS, after EfficientNet, which teaches some of them.
cifar=(vgg8-cifar10-untaught vgg8-cifar10 resnet10-cifar10 inception-cifar10 densenet-cifar10 alexnet-cifar10)
by_recipe=(mobilefacenet-distilled-64 mobilefacenet-distilled-112 mobilefacenet-distilled vae-faces gan-faces denoiser-photo)

train() { # a network that fails does not stop the others; the queue says which it was
    python3 -m training.queue --reproduce "$@" || failed=1
}
failed=0

{
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv
    python3 -m pytest -q -m gpu
    python3 -m benchmarks.models.runtime_agreement --results "$results/runtime_agreement.csv"
    python3 -m benchmarks.models.runtime_speed --results "$results/runtime_speed.csv"
    if command -v wrk; then # what the service makes of it, by requests over HTTP
        python3 -m benchmarks.serving.peers models
        python3 -m benchmarks.serving.peers run --only vestibule --results "$results"
        python3 -m benchmarks.serving.peers limit --results "$results"
    fi
    train efficientnet-cifar10 --set train.epochs="$epochs" \
        --set 'preprocess.size=[224,224]' --set augment.crop=28 --set augment.cutout=56
    train "${cifar[@]}" --set train.epochs="$epochs"
    train "${by_recipe[@]}"
    mkdir -p "$results/weights"
    for name in efficientnet-cifar10 "${cifar[@]}" "${by_recipe[@]}"; do
        if [ -d "$VESTIBULE_RUNS/$name/export/$name" ]; then
            cp -r "$VESTIBULE_RUNS/$name/export/$name" "$results/weights/"
        fi
    done
    python3 -m training.evaluate compare --data cifar10 --weights "$results/weights" | tee "$results/zoo.md"
    exit "$failed"
} 2>&1 | tee "$results/gpu.log"
