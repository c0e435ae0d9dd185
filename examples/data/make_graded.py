"""Lists of eight graded answers and trees of two steps from persona_agreeableness.

    python3 examples/data/make_graded.py

The questions and which answer is the agreeable one are those of the set (CC BY 4.0, see its README.md); how sure an answer
sounds, and the steps of the trees, are added here. Standard library only, the same bytes on every run.
"""

import json
from pathlib import Path

FOLDER = Path(__file__).parent / "persona_agreeableness"
ROWS = {"train": 256, "eval": 64}
GRADED = [
    " Yes, without any doubt",
    " Yes",
    " Probably yes",
    " Perhaps yes",
    " Perhaps not",
    " Probably not",
    " No",
    " No, in no case",
]
STEPS = {" Yes": " That is how I see it.", " No": " That is not how I see it."}


def graded(row):
    scores = list(range(len(GRADED) - 1, -1, -1))
    if row["chosen"] == " No":
        scores.reverse()
    # Answers in an order that says nothing about their scores.
    order = sorted(range(len(GRADED)), key=lambda i: (len(row["prompt"]) * (i + 3)) % 17)
    return {
        "prompt": row["prompt"],
        "responses": [GRADED[i] for i in order],
        "scores": [scores[i] for i in order],
    }


def stepped(row):
    nodes = []
    for side, score in (("chosen", 1.0), ("rejected", 0.0)):
        nodes.append({"parent": None, "text": STEPS[row[side]], "score": score, "visits": 3 + 4 * score})
        step = len(nodes) - 1
        for answer in (" Yes", " No"):
            fits = float(answer == row[side])
            nodes.append({"parent": step, "text": answer, "score": fits, "visits": 1 + 2 * fits})
    return {"prompt": row["prompt"], "nodes": nodes}


for split, rows in ROWS.items():
    lines = (FOLDER / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()[:rows]
    for name, make in (("lists", graded), ("trees", stepped)):
        text = "".join(json.dumps(make(json.loads(line)), ensure_ascii=False) + "\n" for line in lines)
        (FOLDER / f"{name}.{split}.jsonl").write_text(text, encoding="utf-8")
