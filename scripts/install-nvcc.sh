#!/usr/bin/env bash
# Installs the CUDA 13.0 compiler into .cuda/ from pinned Python wheels. Needs python3 with pip; about 300 MB on disk.
# build.rs finds .cuda/bin/nvcc by itself. Does nothing if these versions are there.
set -euo pipefail

fail() {
    echo "install-nvcc: $*" >&2
    exit 1
}

wheels=(
    nvidia-cuda-nvcc==13.0.88
    nvidia-nvvm==13.0.88
    nvidia-cuda-crt==13.0.88
    nvidia-cuda-runtime==13.0.96
    nvidia-cuda-cccl==13.0.85
)

cd "$(dirname "${BASH_SOURCE[0]}")/.."
[[ -f build.rs ]] || fail "no build.rs in $PWD: run the script from its own project"

stamp="${wheels[*]}"
if [[ -f .cuda/wheels.txt && "$(<.cuda/wheels.txt)" == "$stamp" ]] && .cuda/bin/nvcc --version >/dev/null 2>&1; then
    echo "install-nvcc: .cuda/bin/nvcc is up to date"
    exit 0
fi

[[ ! -L .cuda ]] || fail ".cuda is a link to $(readlink .cuda): run the script there"
[[ "$(uname -s)" == Linux ]] || fail "the wheels exist for Linux only; set NVCC to a toolkit of your own"
command -v python3 >/dev/null || fail "python3 not found"
python3 -m pip --version >/dev/null 2>&1 || fail "python3 has no pip: install python3-pip"
command -v gcc >/dev/null || fail "gcc not found: nvcc needs it for preprocessing"

# The folder appears whole: filled beside, then renamed.
partial=.cuda.partial
rm -rf "$partial"
trap 'rm -rf "$partial"' EXIT
log=$(python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-deps --only-binary=:all: \
    --target "$partial" "${wheels[@]}" 2>&1) || fail "pip could not install the wheels: $(tail -n 1 <<<"$log")"

toolkit="$partial/nvidia/cu13"
[[ -x "$toolkit/bin/nvcc" ]] || fail "the wheels hold no bin/nvcc"
"$toolkit/bin/nvcc" --version >/dev/null || fail "nvcc does not run on this machine"
echo "$stamp" >"$toolkit/wheels.txt"
rm -rf .cuda
mv "$toolkit" .cuda
# Cargo watches build.rs, not a folder that may not exist.
touch build.rs
echo "install-nvcc: .cuda/bin/nvcc is nvcc$(.cuda/bin/nvcc --version | grep -o ', V.*' | tr -d ',')"
