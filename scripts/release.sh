#!/usr/bin/env bash
# Makes what is given to people, in dist/: warpo-VERSION-x86_64-linux.tar.gz with its sha256, and with --wheel a wheel for pip that
# has the same program. Needs what the build needs, nvcc (scripts/install-nvcc.sh), binutils, and Python 3 (with pip for --wheel).
# The program must run on a machine with Debian 12's libraries and no toolkit: what it asks of them is looked at here, what it does
# by scripts/check-release.sh.
set -euo pipefail

readonly max_glibc=2.36 max_glibcxx=3.4.30 maturin_version=1.16.0
# Debian 12 has these wherever anything runs. The driver is opened when a GPU is used and may not be among them.
readonly known_libraries='^(libc\.so\.6|libm\.so\.6|libgcc_s\.so\.1|libstdc\+\+\.so\.6|ld-linux-x86-64\.so\.2)$'

fail() {
    echo "release: $*" >&2
    exit 1
}

value() { # the first value of a key in a TOML file
    sed -n "s/^$1 = \(.*\)/\1/p" "$2" | head -n 1 | tr -d '[]" '
}

newest() { # the highest version of a symbol's namespace that the program asks for
    objdump -T "$program" | sed -n "s/.*[ (]$1_\([0-9.]*\).*/\1/p" | sort -Vu | tail -n 1
}

at_most() { # version limit
    [[ "$(printf '%s\n' "$1" "$2" | sort -V | tail -n 1)" == "$2" ]]
}

build() {
    # As maturin builds it, so that one build is in both.
    REQUIRE_NVCC=1 cargo rustc --release --locked --no-default-features --features "$features" --bin warpo -- -C strip=symbols
}

# What the program asks of the machine it runs on.
judge() {
    local libraries glibc glibcxx kernels
    libraries=$(objdump -p "$program" | awk '$1 == "NEEDED" { print $2 }')
    echo "release: libraries:" $libraries
    ! grep -q '^libcuda' <<<"$libraries" || fail "the program is linked with libcuda: it must open the driver when it runs"
    ! grep -Evq "$known_libraries" <<<"$libraries" ||
        fail "the program needs" $(grep -Ev "$known_libraries" <<<"$libraries") "which not every machine has"
    glibc=$(newest GLIBC) glibcxx=$(newest GLIBCXX)
    echo "release: glibc ${glibc:-none}, libstdc++ ${glibcxx:-none}"
    at_most "${glibc:-0}" $max_glibc || fail "the program needs GLIBC_$glibc, Debian 12 has $max_glibc: build on an older system"
    at_most "${glibcxx:-0}" $max_glibcxx || fail "the program needs GLIBCXX_$glibcxx, Debian 12 has $max_glibcxx: build on an older system"
    kernels=$("$program" doctor)
    for arch in sm_80 sm_90a; do
        grep -q "$arch" <<<"$kernels" || fail "the program has no GPU kernels for $arch"
    done
}

# The folder that the archive unpacks into.
fill() {
    local folder=$1
    mkdir -p "$folder/completions" "$folder/docs" "$folder/examples/data" "$folder/scripts"
    cp "$program" README.md CHANGELOG.md LICENSE-APACHE LICENSE-MIT "$folder/"
    cp -r dist/licences "$folder/licences"
    "$program" man --out "$folder/man/man1" >/dev/null
    "$program" completions bash >"$folder/completions/warpo.bash"
    "$program" completions zsh >"$folder/completions/_warpo"
    "$program" completions fish >"$folder/completions/warpo.fish"
    cp docs/configuration.md docs/losses.md docs/quickstart-report.png "$folder/docs/"
    # What the README's commands name.
    cp scripts/make-smollm2.py scripts/forward-metrics.py "$folder/scripts/"
    cp -r examples/*.toml examples/quickstart-model "$folder/examples/"
    cp -r examples/data/persona_agreeableness "$folder/examples/data/"
}

# The same bytes from the same files: names in order, one owner, one time: SOURCE_DATE_EPOCH, else the commit's. (A build watches
# that variable too: where it is first set, everything is compiled again.)
archive() {
    local name=warpo-$version-x86_64-linux time
    time=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || stat -c %Y Cargo.toml)}
    partial=dist/.partial
    rm -rf "$partial"
    trap 'rm -rf "$partial"' EXIT
    fill "$partial/$name"
    chmod -R u=rwX,go=rX "$partial/$name"
    tar --create --format=gnu --sort=name --mtime="@$time" --owner=0 --group=0 --numeric-owner --directory "$partial" "$name" |
        gzip -9 --no-name >"$partial/$name.tar.gz"
    (cd "$partial" && sha256sum "$name.tar.gz" >"$name.tar.gz.sha256")
    mv "$partial/$name.tar.gz" "$partial/$name.tar.gz.sha256" dist/
    echo "release: dist/$name.tar.gz, $(stat -c %s "dist/$name.tar.gz") bytes, $(cut -c1-64 "dist/$name.tar.gz.sha256")"
}

# maturin says which manylinux the program is for, by the symbols it asks for.
wheel() {
    local tool=$target/maturin/bin/maturin made
    if ! "$tool" --version 2>/dev/null | grep -q " $maturin_version\$"; then
        python3 -m venv "$target/maturin"
        "$target/maturin/bin/pip" install --quiet --disable-pip-version-check "maturin==$maturin_version"
    fi
    rm -f dist/warpo-*.whl
    REQUIRE_NVCC=1 "$tool" build --release --out dist
    made=$(echo dist/warpo-*.whl)
    cmp "$program" <(unzip -p "$made" '*/scripts/warpo') || fail "the wheel has another program than the archive"
    echo "release: $made, $(stat -c %s "$made") bytes"
}

cd "$(dirname "${BASH_SOURCE[0]}")/.."
[[ $# == 0 || ($# == 1 && $1 == --wheel) ]] || fail "usage: scripts/release.sh [--wheel]"
[[ "$(uname -sm)" == "Linux x86_64" ]] || fail "the archive is for Linux on x86-64, and is made there"
version=$(value version Cargo.toml) features=$(value features pyproject.toml)
target=$(cargo metadata --no-deps --format-version=1 | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
program=$target/release/warpo
build
judge
mkdir -p dist
rm -rf dist/licences
scripts/third-party.py dist/licences
archive
[[ $# == 0 ]] || wheel
