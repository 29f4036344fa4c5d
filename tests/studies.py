"""Small user studies on made-up faces, and people who are made up too: for tests only."""

import json
from itertools import product

import cv2
import numpy as np
import pandas as pd

from prle.core import rng
from prle.study.page import seal_answer, write_page
from prle.study.images import build_study

SECRET = "5e" * 32  # so that the tests always see the same study
FIVE = ("DF", "FS", "F2F", "Fsh", "NT")


def people(n, subsets=FIVE, split="test"):
    "Rows as of a manifest: a real face and the fakes of n people; swaps pair neighbours."
    rows = []
    for k, subset in product(range(n), ("real", *subsets)):
        face = dict(path=f"{subset}/{k}.png", subset=subset, label=int(subset != "real"))
        other = k ^ 1 if subset in ("DF", "FS", "Fsh") else k
        source = "" if subset == "real" else f"p{other:03d}"
        rows.append(face | dict(identity=f"p{k:03d}", source_identity=source, split=split))
    return pd.DataFrame(rows)


def faces(folder, n, subsets=FIVE, size=48, split="test", top=None):
    """The same with pictures (smooth noise, fakes brighter) and quantile maps.

    Most attended are the `top` upper rows, and in them what is left."""
    rows, draw = people(n, subsets, split), rng("study faces")
    ranks = np.zeros((size, size), np.uint16)
    top = top or size // 2
    ranks[:top] = (np.arange(top * size) * 65535 // (top * size) + 1).reshape(top, size)
    folder.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(folder / "quantiles.png"), ranks)
    for r in rows.itertuples():
        (folder / r.subset).mkdir(exist_ok=True)
        image = cv2.resize(draw.integers(20, 160, (6, 6, 3), dtype=np.uint8), (size, size))
        cv2.imwrite(str(folder / r.path), image + np.uint8(60 * r.label))
    rows["quantiles"] = str(folder / "quantiles.png")
    rows.attrs["root"] = str(folder)
    return rows


def study(
    folder,
    participants=2,
    images=4,
    subsets=("F2F", "NT"),
    n=12,
    practice=2,
    post="answers",
    confidence=False,
    split="test",
    top=None,
    secret=SECRET,
):
    "A study on disk, page included."
    made = build_study(
        faces(folder / "faces", n, subsets, split=split, top=top),
        folder / "study",
        participants,
        images,
        subsets,
        practice,
        secret=secret,
    )
    write_page(made, post=post, confidence=confidence)
    return made


def signed(answer):
    "The answer with its seal, as the page sends it."
    return answer | dict(seal=seal_answer(answer))


def simulate(study, accuracy, seed=0, participant=0.5, face=0.5, rt=2000, codes=None):
    """Write the answers of made-up people, marked as simulated in every record.

    `accuracy(row)`: probability of a right answer at a picture of the key; `participant`, `face`: spreads, log-odds."""
    draw, key = rng("simulated", seed), study.pictures.set_index("picture")
    faces = dict(zip(key.path.unique(), face * draw.standard_normal(key.path.nunique())))
    name = study.settings["study"]
    for code in codes if codes is not None else study.codes:
        own, answers = participant * draw.standard_normal(), []
        rows = study.plan[study.plan.code == code].rename(columns=dict(index="place"))
        for r in rows.itertuples():
            right = True
            if r.picture:
                k = key.loc[r.picture]
                p = accuracy(k)
                logit = np.log(p / (1 - p)) + own + faces[k.path]
                right = draw.random() < 1 / (1 + np.exp(-logit))
            given = r.expected if right else {"real": "fake", "fake": "real"}[r.expected]
            answer = dict(study=name, code=code, index=int(r.place), item=r.picture or "check")
            answer |= dict(answer=given, rt=int(rt), source="button", confidence=None)
            answers.append(signed(answer) | dict(simulated=True))
        saved = dict(study=name, code=code, complete=True, answers=answers)
        (study.path / "responses" / f"{code}.json").write_text(json.dumps(saved))
