#!/usr/bin/env bash
# Runs the README's quickstart and its example with own data with the program of an archive or a wheel, in an empty folder, and
# compares what it says with what the README prints: every line, but for paces, times and the number of threads. A wheel's program runs in a fresh virtual
# environment; an archive's in a root folder with the libraries it is linked with and nothing else, where namespaces allow that.
#
#     scripts/check-release.sh dist/warpo-0.1.0-x86_64-linux.tar.gz
#     scripts/check-release.sh dist/warpo-0.1.0-py3-none-manylinux_2_35_x86_64.whl
set -euo pipefail

fail() {
    echo "check-release: $*" >&2
    exit 1
}

# The first indented block of the README behind a line that ends so, without its indentation.
block() {
    awk -v end="$1" '!on { on = substr($0, length($0) - length(end) + 1) == end; next }
         /^    / { print substr($0, 5); seen = 1; next } seen { exit }' README.md
}

# What differs from machine to machine is taken out.
steady() {
    sed -E 's/[0-9]+ worker threads?/N worker threads/; s/[0-9]+ (rows|tokens)\/s/N \1\/s/; s/ in [0-9hms]+$/ in N/; s/  [0-9hms]+ left$//'
}

# Every line of the first file is in the second, in that order.
in_order() {
    awk 'NR == FNR { if ($0 != "[...]") want[++n] = $0; next } k < n && $0 == want[k + 1] { k++ }
         END { if (k < n) { print "not in the output, or not in its place: " want[k + 1]; exit 1 } print n " lines of the README found" }' "$1" "$2"
}

from_archive() {
    [[ ! -f $release.sha256 ]] || (cd "$(dirname "$release")" && sha256sum --check --quiet "$(basename "$release").sha256")
    tar -xzf "$release" -C "$work/unpacked"
    [[ $(find "$work/unpacked" -mindepth 1 -maxdepth 1 | wc -l) == 1 ]] || fail "$release does not unpack into one folder"
    mv "$work"/unpacked/* "$work/run"
    for file in README.md CHANGELOG.md LICENSE-MIT LICENSE-APACHE licences/THIRD-PARTY.txt man/man1/warpo-train.1 completions/_warpo; do
        [[ -s $work/run/$file ]] || fail "$release has no $file"
    done
    if unshare --map-root-user true 2>/dev/null; then
        ldd "$work/run/warpo" | grep -o '/[^ ]*' | xargs -I{} cp --parents --dereference {} "$work/run"
        program=(env -i "$(command -v unshare)" --map-root-user "$(command -v chroot)" . /warpo)
    else
        echo "check-release: no namespaces here: the program runs among this machine's files"
        program=("${clean[@]}" ./warpo)
    fi
}

from_wheel() {
    python3 -m venv "$work/venv"
    "$work/venv/bin/pip" install --quiet --disable-pip-version-check --no-index --no-deps "$release"
    mkdir "$work/run"
    cp -r examples "$work/run/"
    program=("${clean[@]}" "$work/venv/bin/warpo")
}

[[ $# == 1 && -f $1 ]] || fail "usage: scripts/check-release.sh ARCHIVE|WHEEL"
release=$(realpath "$1")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/unpacked"
# Nothing of this machine's environment: no toolkit on the path, no home.
clean=(env -i "PATH=/usr/bin:/bin" "HOME=$work")
case "$release" in
    *.tar.gz) from_archive ;;
    *.whl) from_wheel ;;
    *) fail "$release is neither an archive nor a wheel" ;;
esac
block "What it printed here:" | steady >"$work/quickstart"
block "whose model has no weights and starts from a seed:" >"$work/commands"
block "it printed, among other lines," | steady >"$work/own"
[[ $(wc -l <"$work/quickstart") -ge 20 && $(wc -l <"$work/commands") == 3 && $(wc -l <"$work/own") -ge 3 ]] ||
    fail "README.md has its examples elsewhere"

cd "$work/run"
kernels=$("${program[@]}" doctor)
head -n 1 <<<"$kernels"
for arch in sm_80 sm_90a; do
    grep -q "$arch" <<<"$kernels" || fail "no GPU kernels for $arch"
done
"${program[@]}" train examples/quickstart.toml --device host | steady >"$work/found" || fail "the quickstart failed"
in_order "$work/quickstart" "$work/found" || fail "the quickstart said something else than README.md"
[[ -s runs/quickstart/final/model.safetensors ]] || fail "the quickstart left no model"
while read -ra words; do
    [[ ${words[0]} == warpo ]] || fail "README.md: no command of warpo: ${words[*]}"
    "${program[@]}" "${words[@]:1}" </dev/null | steady >"$work/found" || fail "${words[*]}: failed"
done <"$work/commands"
in_order "$work/own" "$work/found" || fail "the example with own data said something else than README.md"
echo "check-release: $(basename "$release") runs the README's examples as they are printed"
