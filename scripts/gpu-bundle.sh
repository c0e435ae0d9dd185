#!/usr/bin/env bash
# Makes gpu-bundle/: everything that scripts/gpu-check.sh needs on a machine with a GPU and nothing else. Copy the folder
# there and run ./gpu-check.sh in it. Needs what the build needs, and nvcc (scripts/install-nvcc.sh).
set -euo pipefail

fail() {
    echo "gpu-bundle: $*" >&2
    exit 1
}

cd "$(dirname "${BASH_SOURCE[0]}")/.."
readonly max_bytes=60000000
bundle=gpu-bundle

# In the tests' kernels a wait that takes longer than a few seconds stops the kernel: one that hangs would take everything
# after it along. Built first and set aside, so that what is left behind is the usual build. A bundle without GPU kernels
# would be of no use.
REQUIRE_NVCC=1 WAIT_LIMIT=500000 cargo build --release --locked --features bench --test main --message-format=json \
    >target/gpu-bundle.json || fail "the build of the tests failed"
# Cargo names its test binary by a hash; its messages say which it is.
binary() {
    python3 - "$1" "$2" <<'PYTHON'
import json, sys
kind, name = sys.argv[1:]
paths = [m["executable"] for m in map(json.loads, open("target/gpu-bundle.json"))
         if m.get("reason") == "compiler-artifact" and m.get("executable")
         and m["target"]["kind"] == [kind] and m["target"]["name"] == name]
print(paths[-1] if paths else "")
PYTHON
}

# The folder appears whole: filled beside, then renamed.
partial=$bundle.partial
rm -rf "$partial"
trap 'rm -rf "$partial"' EXIT
mkdir -p "$partial/tests"
place() {
    local from
    from=$(binary "$1" "$2")
    [[ -n "$from" ]] || fail "cargo built no $1 $2"
    # Each embeds every kernel three times over: compressed, they fit through a narrow door.
    strip -o "$partial/$3" "$from"
    gzip "$partial/$3"
}
place test main warpo-tests
REQUIRE_NVCC=1 cargo build --release --locked --features bench --bin warpo --message-format=json \
    >target/gpu-bundle.json || fail "the build failed"
place bin warpo warpo
mkdir -p "$partial/benches"
cp -r benches/baselines "$partial/benches/baselines"
cp benches/shapes.json "$partial/benches/"
cp -r examples "$partial/examples"
cp -r tests/fixtures "$partial/tests/fixtures"
find tests -name '*.snap' -exec cp --parents {} "$partial" \;
cp scripts/gpu-check.sh "$partial/gpu-check.sh"
cp LICENSE-MIT LICENSE-APACHE "$partial/"
git rev-parse HEAD >"$partial/commit.txt" 2>/dev/null || echo unknown >"$partial/commit.txt"

bytes=$(du -sb "$partial" | cut -f1)
((bytes <= max_bytes)) || fail "$bytes bytes, over $max_bytes"
rm -rf "$bundle"
mv "$partial" "$bundle"
echo "gpu-bundle: $bundle/, $((bytes / 1000000)) MB; copy it to the GPU machine and run ./gpu-check.sh there"
