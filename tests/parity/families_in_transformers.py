"""Loads the folders warpo saved of every family into transformers, beside the folders they were read from.

    pip install torch transformers
    SAVE_FAMILIES=DIR cargo test --release -- families::a_saved_folder
    python tests/parity/families_in_transformers.py DIR

Run with torch 2.15, transformers 5.24. Exits 1 if a folder is loaded with a missing, unexpected or mismatched tensor, or
if any logit differs in float64: the weights are the same bits, so nothing may. The tests in `tests/model/families.rs` do
the first half without Python: same names, shapes and bytes.
"""

import json
import pathlib
import sys

import torch
from transformers import AutoModelForCausalLM

FIXTURES = pathlib.Path(__file__).parent.parent / "fixtures" / "parity"


def load(folder):
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float64, attn_implementation="eager", output_loading_info=True
    )
    return model.eval(), {key: value for key, value in report.items() if value}


def main():
    failed = False
    for folder in sorted(path for path in pathlib.Path(sys.argv[1]).iterdir() if path.is_dir()):
        source, saved = FIXTURES / folder.name, folder
        (want, _), (got, problems) = load(source), load(saved)
        worst = 0.0
        with torch.no_grad():
            for pair in json.loads((source / "golden.json").read_text())["pairs"]:
                for side in ("chosen", "rejected"):
                    ids = torch.tensor([pair["prompt"] + pair[side]])
                    worst = max(worst, (got(ids).logits - want(ids).logits).abs().max().item())
        print(f"{folder.name}: largest difference of a logit {worst:.1e}, loading report {problems or 'empty'}")
        failed |= bool(problems) or worst != 0.0
    sys.exit(failed)


if __name__ == "__main__":
    main()
