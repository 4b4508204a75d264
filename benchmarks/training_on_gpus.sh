#!/usr/bin/env bash
# Everything that training has to show on GPUs, side by side on as many as there are (8, 2 or 1).
#
#   benchmarks/training_on_gpus.sh OUT [all|speed|sharded|resume] [SECONDS]
#
# `all` is for 8 GPUs; with 2 run `speed`, `sharded` and `resume` one after the other; with 1, `speed`.
# Results and logs go to OUT. Each part is bounded in time, and none stops another. SMOKE=--smoke runs
# the same at the smallest size on CPUs.
set -u
out=$(mkdir -p "$1" && cd "$1" && pwd)
part=${2:-all}
limit=${3:-560}
smoke=${SMOKE:-}
cd "$(dirname "$0")/.."
export PYTHONPATH=src:${PYTHONPATH:-} TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-8} NCCL_NVLS_ENABLE=${NCCL_NVLS_ENABLE:-0}
end=$((SECONDS + limit))

bounded() { # NAME GPUS COMMAND...
    local name=$1 gpus=$2 left=$((end - SECONDS))
    shift 2
    [ "$left" -gt 10 ] || { echo "$name: no time left"; return; }
    CUDA_VISIBLE_DEVICES=$gpus timeout -k 5 "$left" "$@" >"$out/$name.log" 2>&1
    echo "$name: exit $? at $((SECONDS)) s"
}
bench() { # NAME GPUS FLAGS...
    local name=$1 gpus=$2
    shift 2
    bounded "$name" "$gpus" python3 benchmarks/bench_train.py "$@" $smoke --merge-into "$out/bench_train.json"
}
sharded() { # NAME GPUS FLAGS...; devices are named by their own numbers
    local name=$1 gpus=$2 left=$((end - SECONDS - 30))
    shift 2
    bounded "$name" "$gpus" python3 benchmarks/bench_train_sharded.py --gpus "$gpus" \
        --max-seconds "$left" "$@" $smoke --merge-into "$out/bench_train.json"
}
resume() { # GPUS
    bounded train_resume "$1" python3 benchmarks/train_resume.py --gpus "$1" \
        --max-seconds $((end - SECONDS - 40)) $smoke --output "$out/train_resume.json"
}
tests() { # NAME GPUS EXPRESSION
    [ -z "$smoke" ] || return
    bounded "$1" "$2" python3 -m pytest tests/gpu/test_train_cuda.py -m gpu -q --durations 0 \
        -o addopts="" -k "$3"
}
lora=(--shape 7b --lora --gradient-checkpointing --steps 12 --warmup 3)
one_gpu="not two_gpus and not sharded"
two_gpus="two_gpus or sharded_lora"
speed() { # GPU GPU
    (bench bench_1.5b "$1" --shape 1.5b; tests tests_one_gpu "$1" "$one_gpu") &
    if [ "$1" = "$2" ]; then wait; bench bench_7b_lora "$2" "${lora[@]}"
    else bench bench_7b_lora "$2" "${lora[@]}" & fi
}
sharding() { # GPUS
    sharded bench_7b_fsdp "$1" --shape 7b
    tests tests_two_gpus "$1" "$two_gpus"
}

case $part in
all) speed 0 1; sharding 2,3 & resume 4,5,6,7 & ;;
speed) speed 0 "$([ "$(nvidia-smi -L 2>/dev/null | wc -l)" -gt 1 ] && echo 1 || echo 0)" ;;
sharded) sharding 0,1 ;;
resume) resume 0,1 ;;
*) echo "unknown part $part" && exit 2 ;;
esac
wait
for name in bench_1.5b bench_7b_lora bench_7b_fsdp train_resume; do
    [ -f "$out/$name.log" ] && echo "== $name" && grep -v '^{' "$out/$name.log" | tail -n 14
done
for name in tests_one_gpu tests_two_gpus; do
    [ -f "$out/$name.log" ] && echo "== $name" && tail -n 12 "$out/$name.log"
done
exit 0
