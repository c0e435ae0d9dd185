#!/bin/sh
# Cuts the letters of reports' pictures out of DejaVu Sans 2.37 and writes src/report/font/: the font and its licence, which
# the font itself carries. Needs a Python with fonttools: make-report-font.sh DejaVuSans.ttf
set -eu
font=$(realpath "${1:?usage: make-report-font.sh DejaVuSans.ttf}")
cd "$(dirname "$0")/../src/report/font"
# Latin, Greek, Cyrillic, dashes and quotes, arrows, minus, dot.
letters=U+0020-007E,U+00A0-017F,U+0391-03C9,U+0410-044F,U+2010-2026,U+2030,U+2190-2193,U+2212,U+25CF
python3 -m fontTools.subset "$font" --unicodes="$letters" --layout-features= --no-hinting --notdef-outline \
    --name-IDs=0,1,2,3,4,5,6,13,14 --output-file=DejaVuSans-subset.ttf
python3 - "$font" >DejaVuSans-LICENSE.txt <<'PYTHON'
import sys
from fontTools.ttLib import TTFont

names = TTFont(sys.argv[1])["name"]
print("DejaVuSans-subset.ttf has the letters of DejaVu Sans that reports need (scripts/make-report-font.sh).\n")
for number in (5, 0, 13, 14):
    print(names.getDebugName(number).replace("\r\n", "\n").replace("\r", "\n").strip() + "\n")
PYTHON
