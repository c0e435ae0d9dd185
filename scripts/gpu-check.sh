#!/usr/bin/env bash
# Checks warpo on a GPU, from a folder made by scripts/gpu-bundle.sh: needs a driver and nothing else. With a python3 that has
# torch it also measures the Python peers and, through torch's cuBLASLt, compares matrix products.
#
#     ./gpu-check.sh [--device cuda|cuda:N|host] [--only PARTS] [--out FOLDER]
#
# In this order, each part of use without the next: single instructions, kernels, models, sizes of released models, training
# (against the host device, and twice the same), kernel bench, step bench, baselines. PARTS are one or more of units, kernels,
# models, sizes, training, bench, steps, baselines, with commas between. Tests run JOBS groups at a time (by default one for two
# processors). One line a check: PASS or FAIL, what, a figure. The same as JSON lines in FOLDER/summary.jsonl, the programs' own
# output beside it. `--device host` rehearses everything on a machine without a GPU. Exit code 0 if all passed.
set -uo pipefail

device=cuda
only=
out=gpu-check-results
while (($#)); do
    case $1 in
        --device) device=${2:-} && shift 2 ;;
        --only) only=${2:-} && shift 2 ;;
        --out) out=${2:-} && shift 2 ;;
        *) echo "usage: gpu-check.sh [--device cuda|cuda:N|host] [--only PARTS] [--out FOLDER]" >&2 && exit 2 ;;
    esac
done
[[ $device =~ ^(cuda|cuda:[0-9]+|host)$ && -n $out ]] || { echo "gpu-check: --device $device: expected cuda, cuda:N or host" >&2; exit 2; }
[[ ,${only:-units}, =~ ^,((units|kernels|models|sizes|training|bench|steps|baselines),)+$ ]] || { echo "gpu-check: --only $only: no such part" >&2; exit 2; }
cd "$(dirname "${BASH_SOURCE[0]}")" || exit 2
for program in warpo warpo-tests; do
    [[ -x $program ]] || { gzip -dc $program.gz >$program.part && chmod +x $program.part && mv $program.part $program; } ||
        { echo "gpu-check: no $program here: run the copy inside gpu-bundle/" >&2; exit 2; }
done
# Recorded texts are beside the test program, not where it was compiled.
export INSTA_WORKSPACE_ROOT=$PWD INSTA_UPDATE=no
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 2
rm -rf "${out:?}"/runs && : >"$out/summary.jsonl"
# The peers' Python, and cuBLASLt from its torch under the name by which it is looked for.
python=$(command -v python3)
[[ -n $python ]] && "$python" -c 'import torch' 2>/dev/null || python=
if [[ -n $python && $device != host ]]; then
    cublaslt=$("$python" -c 'import glob, site; print(*glob.glob(site.getsitepackages()[0] + "/nvidia/*/lib/libcublasLt.so.*"))' | cut -d' ' -f1)
    if [[ -n $cublaslt ]]; then
        mkdir -p "$out/lib" && ln -sf "$cublaslt" "$out/lib/libcublasLt.so"
        export LD_LIBRARY_PATH=$out/lib:$(dirname "$cublaslt"):${LD_LIBRARY_PATH:-}
    fi
fi
# Groups of tests that run at once; what they compare with is computed on the processor.
jobs=${JOBS:-$((($(nproc) + 1) / 2))}
[[ $jobs =~ ^[1-9][0-9]*$ ]] || { echo "gpu-check: JOBS=$jobs: expected 1 or more" >&2; exit 2; }

# check PASS|FAIL NAME FIGURE
check() {
    printf '%s  %-28s %s\n' "$1" "$2" "$3"
    local figure=${3//\\/\\\\}
    printf '{"check":"%s","result":"%s","figure":"%s"}\n' "$2" "$1" "${figure//\"/\\\"}" >>"$out/summary.jsonl"
}

# so_far PASS|FAIL: how many of these there were.
so_far() {
    grep -c "\"result\":\"$1\"" "$out/summary.jsonl"
}

# The last line a program wrote about why it failed.
reason() {
    grep -v '^ *$' "$1" | grep -m1 -E 'error: |^test .* FAILED|: error ' || grep -v '^ *$' "$1" | tail -n 1
}

# ---- the device and its kernels

doctor() {
    local log=$out/doctor.log own=$device line
    ./warpo doctor >"$log" 2>&1
    [[ $device == cuda ]] && own=cuda:0
    # `cuda:` alone introduces the reason why there is none.
    line=$(grep -m1 -E "^($own|cuda):? " "$log" | sed -E 's/^[a-z:0-9]+ +//')
    if [[ $device == host || $line == *"loads all"* ]]; then
        check PASS doctor "$line"
    else
        check FAIL doctor "${line:-$(reason "$log")}"
    fi
}

# ---- kernel tests

# A kernel that faults ends the process's context, and every later test of the process with it: what failed runs again
# in a process of its own.
kernel_tests() {
    local group log total=0 good=0 test start=$SECONDS
    group=$1
    log=$out/tests-${group//::/-}.log
    TEST_DEVICE=$device timeout 900 ./warpo-tests "$group::" --test-threads=1 --nocapture >"$log" 2>&1
    total=$(./warpo-tests "$group::" --list 2>/dev/null | grep -c ': test$')
    if grep -q '^test result: ok' "$log"; then
        check PASS "$group" "$total of $total tests, $((SECONDS - start)) s"
        return
    fi
    local first=
    while read -r test; do
        local own=$out/test-${test//::/-}.log
        if TEST_DEVICE=$device timeout 300 ./warpo-tests "$test" --exact --nocapture >"$own" 2>&1; then
            good=$((good + 1))
            rm -f "$own"
        else
            first=${first:-$test: $(grep -A1 -m1 'panicked at' "$own" | tail -n 1)}
        fi
    done < <(./warpo-tests "$group::" --list 2>/dev/null | sed -n 's/: test$//p')
    if ((total > 0 && good == total)); then
        check FAIL "$group" "$good of $total tests alone, but not together: $log"
    else
        check FAIL "$group" "$good of $total tests; $first"
    fi
}

# ---- the quickstart's first steps

readonly steps=8

# train NAME DEVICE PRECISION [true: each micro-batch as a graph]
train() {
    local name=$1 on=$2 precision=$3
    timeout 900 ./warpo train examples/quickstart.toml --device "$on" --out "$out/runs/$name" \
        --set "train.steps=$steps" --set train.eval_every=0 --set "train.precision=$precision" \
        --set "train.cuda_graph=${4:-false}" >"$out/train-$name.log" 2>&1
}

# Values of a metric by step.
values() {
    grep -o "\"$2\": *[^,}]*" "$out/runs/$1/metrics.jsonl" | sed 's/.*: *//'
}

# side_by_side PRECISION LIMIT: the loss on the device and on the host, relative, over all steps. The first step differs
# by rounding alone. AdamW then divides each gradient by its own size, so what is rounding in a gradient near zero moves
# its weight as far as any other: the limits are wide, and a wrong kernel is far outside of them.
side_by_side() {
    local precision=$1 limit=$2
    local name="quickstart $precision"
    train "device-$precision" "$device" "$precision" || { check FAIL "$name" "$(reason "$out/train-device-$precision.log")"; return; }
    train "host-$precision" host "$precision" || { check FAIL "$name" "on the host: $(reason "$out/train-host-$precision.log")"; return; }
    local worst
    worst=$(paste <(values "device-$precision" loss) <(values "host-$precision" loss) | awk -v steps=$steps '
        { d = $1 - $2; if (d < 0) d = -d; if ($2 != 0) d /= ($2 < 0 ? -$2 : $2); if (!(d <= worst)) worst = d; n += NF == 2 }
        END { if (n < steps) print "missing"; else printf "%.2e", worst }')
    local figure="largest relative difference of the loss $worst over $steps steps (limit $limit)"
    if [[ $worst != missing ]] && awk -v a="$worst" -v b="$limit" 'BEGIN { exit !(a + 0 <= b + 0) }'; then
        check PASS "$name" "$figure"
    else
        check FAIL "$name" "$figure"
    fi
}

weights() {
    (cd "$out/runs/$1" && find . -name '*.safetensors' -exec sha256sum {} + | sort -k2)
}

# same_bits NAME PRECISION RUN [true: as graphs]: what side_by_side left, beside another run on the device.
same_bits() {
    local name=$1 precision=$2 run=$3
    train "$run" "$device" "$precision" "${4:-false}" || { check FAIL "$name" "$(reason "$out/train-$run.log")"; return; }
    local first second
    first=$(weights "device-$precision" 2>/dev/null)
    second=$(weights "$run")
    if [[ -n $first && $first == "$second" ]]; then
        check PASS "$name" "$(wc -l <<<"$first") weight files equal after $steps steps"
    else
        check FAIL "$name" "weight files differ after $steps steps"
    fi
}

# ---- speed

bench() {
    local log=$out/bench.md
    if ! timeout 1800 ./warpo bench kernels --device "$device" --json "$out/bench.json" >"$log" 2>&1; then
        check FAIL bench "$(reason "$log")"
        return
    fi
    local rows
    rows=$(grep -c '^| [a-z]*_' "$log")
    local best
    best=$(grep '^| [a-z]*_' "$log" | awk -F'|' '{ gsub(/ /, "", $7); gsub(/ /, "", $2); print $7, $2 }' | sort -rn | head -n 1)
    # A little over is a clock above the data sheet's; much over is a kernel that did not do its work.
    if [[ $device == host ]]; then
        check PASS bench "$rows kernels ran at small shapes"
    elif awk -v best="${best% *}" 'BEGIN { exit !(best > 115) }'; then
        check FAIL bench "${best#* } at ${best% *} % of its roof: it did not do its work"
    else
        check PASS bench "$rows kernels; best ${best% *} % of its roof (${best#* })"
    fi
}

# step_bench NAME FILE [ARGUMENTS]: the small shape on the host device, every shape that fits on a GPU.
step_bench() {
    local name=$1 file=$2
    shift 2
    local log=$out/$file.md
    if ! timeout 1800 ./warpo bench step --device "$device" --steps "$step_count" --json "$out/$file.json" "$@" >"$log" 2>&1; then
        check FAIL "$name" "$(reason "$log")"
        return
    fi
    local rows best
    rows=$(grep -c '"step_ms"' "$out/$file.json")
    best=$(grep -o '"share_of_peak": *[0-9.e-]*' "$out/$file.json" | sed 's/.*: *//' | sort -g | tail -n 1)
    if ((rows == 0)) || awk -v best="$best" 'BEGIN { exit !(best > 1) }'; then
        check FAIL "$name" "$rows cases, best at $best of the peak: that cannot be"
    else
        check PASS "$name" "$rows cases; best at $(awk -v best="$best" 'BEGIN { printf "%.1f", 100 * best }') % of the peak"
    fi
}

# One process a case; what does not run is said and fails nothing, because it is not warpo's.
baselines() {
    local model engine log name
    [[ -n $python ]] || { echo "      baselines: no python3 with torch"; return; }
    for model in $1; do
        for engine in transformers trl trl-liger; do
            name="$engine $model"
            log=$out/baseline-$engine-$model.log
            if timeout 600 "$python" benches/baselines/steps.py --engine "$engine" --model "$model" --steps "$step_count" \
                ${2:-} --out "$out/baseline-$engine-$model.json" >"$log" 2>&1; then
                check PASS "baseline $name" "$(tail -n 1 "$log")"
            else
                echo "      baseline $name did not run: $(tail -n 1 "$log")"
            fi
        done
    done
}

# part NAME: whether it was asked for.
part() {
    [[ -z $only || ,$only, == *,$1,* ]]
}

# Several groups of tests, some at once.
tests_at_once() {
    local group
    for group in "$@"; do
        while (($(jobs -rp | wc -l) >= jobs)); do
            wait -n
        done
        kernel_tests "$group" &
    done
    wait
}

# Kernels that others build on come first.
kernel_groups() {
    ./warpo-tests --list 2>/dev/null | sed -n 's/^\(ops::[a-z0-9_]*\)::.*: test$/\1/p' | sort -u |
        awk '{ rank = /gemm/ ? 0 : /attention/ ? 1 : /head/ ? 2 : 3; print rank, $0 }' | sort | cut -d' ' -f2
}

step_count=10
[[ $device == host ]] && step_count=2
echo "warpo $(./warpo --version | cut -d' ' -f2), commit $(cat commit.txt), on $device, $(date -u +%Y-%m-%dT%H:%MZ)"
doctor
[[ $device == host || $(so_far FAIL) == 0 ]] || exit 1
part units && kernel_tests device::units
if part kernels; then
    tests_at_once $(kernel_groups)
fi
part models && tests_at_once loss model
part sizes && tests_at_once real_sizes
if part training; then
    side_by_side f32 1e-3
    side_by_side bf16 3e-2
    same_bits "same bits twice" f32 again-f32
    same_bits "same bits as graphs" bf16 graphs-bf16 true
fi
part bench && bench
if part steps; then
    step_bench "step bench" steps
    step_bench "step bench, graphs" steps-graph --task dpo --graph true
    # All weights, as much computed again as it takes: exact, and with moments in 8 bits.
    step_bench "step bench, 3B exact" steps-3b --task dpo --layout shared --model qwen2.5-3b
    step_bench "step bench, 8B" steps-8b --task dpo --layout shared --model llama-3-8b --gradients bf16 --moments 8bit
fi
if part baselines; then
    if [[ $device == host ]]; then
        baselines small "--pairs 2 --prompt 16 --response 16 --micro 1"
    else
        baselines "llama-3.2-1b qwen2.5-1.5b"
    fi
fi
passed=$(so_far PASS)
failed=$(so_far FAIL)
total=$((passed + failed))
printf '{"check":"all","result":"%s","figure":"%s of %s"}\n' "$( ((failed)) && echo FAIL || echo PASS)" "$passed" "$total" >>"$out/summary.jsonl"
echo "$( ((failed)) && echo FAIL || echo PASS)  $passed of $total checks; logs and summary.jsonl in $out"
((failed == 0))
