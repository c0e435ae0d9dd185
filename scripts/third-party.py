#!/usr/bin/env python3
"""Writes the licences of everything that the released program contains besides its own code.

    scripts/third-party.py FOLDER

Its features are those of pyproject.toml. Texts are read where Cargo keeps the sources of the crates that
Cargo.lock names; a crate without one gets the text of its SPDX licence from below. A crate with neither is an error. FOLDER gets
THIRD-PARTY.txt and RUST-LIBRARY.html, the notices of Rust's standard library as its toolchain carries them.
"""

import json
import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGET = "x86_64-unknown-linux-gnu"
# Names of files that hold a licence, and folders of a crate that do not become part of a program.
LICENCE = re.compile(r"(un)?licen[cs]e|copying|copyright|notice", re.IGNORECASE)
CODE = {".rs", ".c", ".h", ".py", ".json", ".toml", ".html", ".sh"}
UNUSED = {"tests", "test", "benches", "bench", "examples", "fuzz", "target", ".github"}

MIT = """Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated documentation
files (the "Software"), to deal in the Software without restriction, including without limitation the rights to use, copy,
modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit persons to whom the Software
is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES
OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE
LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR
IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE."""
BSD_3_CLAUSE = """Redistribution and use in source and binary forms, with or without modification, are permitted provided that the
following conditions are met:

1. Redistributions of source code must retain the above copyright notice, this list of conditions and the following disclaimer.

2. Redistributions in binary form must reproduce the above copyright notice, this list of conditions and the following
disclaimer in the documentation and/or other materials provided with the distribution.

3. Neither the name of the copyright holder nor the names of its contributors may be used to endorse or promote products derived
from this software without specific prior written permission.

THIS SOFTWARE IS PROVIDED BY THE COPYRIGHT HOLDERS AND CONTRIBUTORS "AS IS" AND ANY EXPRESS OR IMPLIED WARRANTIES, INCLUDING, BUT
NOT LIMITED TO, THE IMPLIED WARRANTIES OF MERCHANTABILITY AND FITNESS FOR A PARTICULAR PURPOSE ARE DISCLAIMED. IN NO EVENT SHALL
THE COPYRIGHT HOLDER OR CONTRIBUTORS BE LIABLE FOR ANY DIRECT, INDIRECT, INCIDENTAL, SPECIAL, EXEMPLARY, OR CONSEQUENTIAL DAMAGES
(INCLUDING, BUT NOT LIMITED TO, PROCUREMENT OF SUBSTITUTE GOODS OR SERVICES; LOSS OF USE, DATA, OR PROFITS; OR BUSINESS
INTERRUPTION) HOWEVER CAUSED AND ON ANY THEORY OF LIABILITY, WHETHER IN CONTRACT, STRICT LIABILITY, OR TORT (INCLUDING NEGLIGENCE
OR OTHERWISE) ARISING IN ANY WAY OUT OF THE USE OF THIS SOFTWARE, EVEN IF ADVISED OF THE POSSIBILITY OF SUCH DAMAGE."""
SPDX = {"MIT": MIT, "BSD-3-Clause": BSD_3_CLAUSE, "Apache-2.0": (ROOT / "LICENSE-APACHE").read_text()}

GPU = """The GPU kernels are warpo's own, compiled by NVIDIA's nvcc from their sources, with mathematical functions of its device library
(libdevice), which the CUDA Toolkit's End User License Agreement lists among what may be passed on inside a program:
https://docs.nvidia.com/cuda/eula. The driver (libcuda) is the machine's own and is opened when a GPU is used."""


def features() -> str:
    """What the released program is built with."""
    found = re.search(r"^features = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    if not found:
        sys.exit("third-party: pyproject.toml has no line `features = [...]`")
    return re.sub(r'[" ]', "", found[1])


def linked() -> list[dict]:
    """The crates whose code is in the program: what is linked, and macros, but not what macros and build scripts use."""
    command = ["cargo", "metadata", "--locked", "--format-version=1", f"--filter-platform={TARGET}"]
    command += ["--no-default-features", "--features", features()]
    graph = json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)
    packages = {package["id"]: package for package in graph["packages"]}
    edges = {node["id"]: node["deps"] for node in graph["resolve"]["nodes"]}
    found, waiting = set(), [graph["resolve"]["root"]]
    while waiting:
        crate = waiting.pop()
        if crate in found:
            continue
        found.add(crate)
        if not any("proc-macro" in target["kind"] for target in packages[crate]["targets"]):
            waiting += [d["pkg"] for d in edges[crate] if any(kind["kind"] is None for kind in d["dep_kinds"])]
    found.remove(graph["resolve"]["root"])
    return sorted((packages[crate] for crate in found), key=lambda p: (p["name"], p["version"]))


def files(package: dict) -> list[pathlib.Path]:
    """The licence files of a crate, those of C sources in it too."""
    folder = pathlib.Path(package["manifest_path"]).parent
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(set(folders) - UNUSED)
        paths = [pathlib.Path(place, name) for name in sorted(names)]
        found += [p for p in paths if LICENCE.match(p.name) and p.suffix not in CODE]
    if package["license_file"]:
        found.append(folder / package["license_file"])
    return list(dict.fromkeys(found))


def fallback(package: dict) -> str:
    """The text of the SPDX licence of a crate that comes without one."""
    names = re.split(r" OR |/", package["license"] or "")
    text = next((SPDX[name] for name in names if name in SPDX), None)
    if text is None:
        sys.exit(f"third-party: {package['name']} {package['version']} has no licence file, and no text for {package['license']} is here")
    holder = ", ".join(package["authors"]) or f"the authors of {package['name']}"
    return f"Copyright (c) {holder}\n\n{text}"


def texts(package: dict) -> list[str]:
    """The texts of a crate. C sources in it may be offered under the GPL as well: it stays out where the crate does not take it."""
    read = [path.read_text(errors="replace").replace("\r\n", "\n").strip("\n") for path in files(package)]
    taken = "GPL" in (package["license"] or "")
    kept = [text for text in read if text.strip() and (taken or "GNU GENERAL PUBLIC LICENSE" not in text)]
    return kept or [fallback(package)]


def standard_library() -> str:
    """The notices of Rust's own libraries."""
    sysroot = subprocess.run(["rustc", "--print", "sysroot"], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    path = pathlib.Path(sysroot, "share/doc/rust/COPYRIGHT-library.html")
    if not path.exists():
        sys.exit(f"third-party: {path}, the licences of Rust's standard library, is not there")
    return path.read_text()


def section(title: str, text: str) -> str:
    return f"{'=' * 100}\n{title}\n{'=' * 100}\n\n{text}\n"


def report(packages: list[dict]) -> str:
    """Every text once, under the names of the crates that come with it."""
    users: dict[str, tuple[str, list[str]]] = {}
    for package in packages:
        for text in texts(package):
            users.setdefault(" ".join(text.split()), (text, []))[1].append(f"{package['name']} {package['version']}")
    table = "".join(f"{p['name']} {p['version']}: {p['license']}\n" for p in packages)
    parts = [section(f"{len(packages)} Rust crates whose code is in the program, with their licences", table)]
    parts += [section(", ".join(dict.fromkeys(names)), text) for text, names in users.values()]
    return "\n".join(parts)


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: scripts/third-party.py FOLDER")
    folder = pathlib.Path(sys.argv[1])
    font = (ROOT / "src/report/font/DejaVuSans-LICENSE.txt").read_text()
    library = "Its notices are in RUST-LIBRARY.html beside this file."
    parts = [report(linked()), section("DejaVu Sans, the letters of pictures", font)]
    parts += [section("GPU kernels", GPU), section("Rust's standard library", library)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "THIRD-PARTY.txt").write_text("\n".join(parts))
    (folder / "RUST-LIBRARY.html").write_text(standard_library())


main()
