#!/bin/bash
# Everything that wants a GPU, unattended: the tests marked gpu; how fast its runtimes are and how near to torch's; the
# service on it; the CIFAR-10 networks at the length that two processor cores have no time for, their figures on the test
# pictures, and the latency of each.
#
#     VESTIBULE_DATASETS=... benchmarks/gpu.sh RESULTS [EPOCHS]
#
# Needs an environment with the `train` and `dev` dependencies and a CUDA build of torch in front of PATH, and wrk for
# the service. RESULTS then holds gpu.log, the CSV files of speed, agreement and serving, for each network its weights
# and card, and zoo.md with the table. EPOCHS (default 60) is for each of the six; a network that is done already is not
# trained again.
set -euo pipefail

results=$(mkdir -p "$1" && cd "$1" && pwd)
epochs=${2:-60}
cd "$(dirname "$0")/.."
VESTIBULE_RUNS=${VESTIBULE_RUNS:-$results/runs}
export VESTIBULE_RUNS

train() { # name, then what a GPU has time for
    name=$1
    shift
    if [ ! -d "$results/weights/$name" ]; then
        python3 -m training.classify "training/recipes/$name.toml" --run "gpu-$name" --overwrite \
            --set train.epochs="$epochs" --set train.warmup_epochs=5 --set train.ema=0.999 "$@"
        mkdir -p "$results/weights"
        cp -r "$VESTIBULE_RUNS/gpu-$name/export/$name" "$results/weights/"
    fi
    python3 -m training.evaluate classify "$results/weights/$name" --data cifar10 --write
}

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
    train efficientnet-cifar10
    # The same blocks as the recipe's with more of them, at the resolution and widths of the papers' CIFAR networks.
    train resnet-cifar10 --set 'model.config={depths=[2,2,2],widths=[64,128,256],stem="small",shortcut="projection"}'
    train vgg-cifar10 --set \
        'model.config={stages=[[64,64],[128,128],[256,256,256],[512]],hidden=[],pool_size=1,dropout=0.0}'
    train densenet-cifar10 --set 'model.config={depths=[16,16,16],growth=24,stem="small",stem_channels=48}'
    train inception-cifar10
    train alexnet-cifar10
    python3 -m training.evaluate compare --data cifar10 --weights "$results/weights" | tee "$results/zoo.md"
} 2>&1 | tee "$results/gpu.log"
