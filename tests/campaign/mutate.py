"Accidents that happen to files."

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd

BYTES = (
    "flip",
    "flips",
    "truncate",
    "last byte",
    "empty",
    "zeros",
    "noise",
    "all noise",
    "append",
    "delete",
    "folder",
)


def damage(path: Path, how: str, draw: np.random.Generator):
    "Damage the bytes of a file; the file is another one afterwards."
    data = bytearray(path.read_bytes())
    n = max(1, len(data))
    at = int(draw.integers(n))
    if how in ("flip", "flips"):
        for _ in range(1 if how == "flip" else 20):
            data[int(draw.integers(n))] ^= 1 << int(draw.integers(8))
    if how == "truncate":
        data = data[:at]
    if how == "last byte":
        data = data[:-1]
    if how == "empty":
        data = b""
    if how == "zeros":
        data[at : at + 64] = bytes(len(data[at : at + 64]))
    if how == "noise":
        data[at : at + 64] = draw.bytes(len(data[at : at + 64]))
    if how == "all noise":
        data = draw.bytes(n)
    if how == "append":
        data += draw.bytes(20)
    path.unlink()
    if how == "folder":
        path.mkdir()
    elif how != "delete":
        path.write_bytes(data)


# ---- JSON ----

DEEP = 100_000
ODD = {
    "null": "null",
    "list": "[]",
    "object": "{}",
    "zero": "0",
    "minus": "-7",
    "word": '"x"',
    "nan": "NaN",
    "huge": "1e999",
    "long integer": "9" * 6000,
    "true": "true",
    "nested list": '[[["x"]]]',
    "long word": '"' + "x" * 300_000 + '"',
    "deep": "[" * DEEP + "]" * DEEP,
    "control": '"a\\u0000b\\n"',
    "surrogate": '"\\ud800"',
}


def _places(tree, way=()):
    "Every place of a JSON value."
    yield way
    items = (
        tree.items()
        if isinstance(tree, dict)
        else enumerate(tree)
        if isinstance(tree, list)
        else ()
    )
    for key, value in items:
        yield from _places(value, (*way, key))


def _replaced(tree, way, mark):
    "A copy with a mark in one place."
    if not way:
        return mark
    copy = dict(tree) if isinstance(tree, dict) else list(tree)
    copy[way[0]] = _replaced(tree[way[0]], way[1:], mark)
    return copy


def misform(path: Path, how: str, draw: np.random.Generator) -> str:
    "Put something odd into a place of a JSON file; where."
    tree = json.loads(path.read_text())
    ways = list(_places(tree))
    shallow = [w for w in ways if len(w) < 4] if draw.random() < 0.6 else ways
    way = shallow[int(draw.integers(len(shallow)))]
    text = json.dumps(_replaced(tree, way, "@MARK@"), indent=1)
    path.write_text(text.replace('"@MARK@"', ODD[how]))
    return ".".join(map(str, way)) or "all"


# ---- tables ----

CELLS = {
    "null": None,
    "nan": float("nan"),
    "word": "x",
    "number": 3.5,
    "minus": -1,
    "large": 2**40,
    "bytes": b"\xff\x00",
    "list": [1.0],
    "empty list": [],
    "words": ["a"] * 136,
    "nulls": [None] * 136,
    "empty": "",
    "true": True,
}


def respell(path: Path, column: str, how: str, rows, to=None) -> str:
    "Put something odd into rows of a column of a Parquet file, whatever type that gives the column."
    table = pd.read_parquet(path)
    attrs = dict(table.attrs)
    values = list(table[column])
    for row in rows:
        values[row] = CELLS[how]
    other = table.drop(columns=column)
    try:
        made = other.assign(**{column: pd.Series(values, dtype=object)})[list(table)]
    except (TypeError, ValueError):
        made = table
    made.attrs = attrs
    try:
        made.to_parquet(to or path, index=False)
    except Exception:  # no type for such a mixture: then the whole column
        made[column] = (
            [CELLS[how]] * len(made)
            if not isinstance(CELLS[how], list)
            else pd.Series([CELLS[how]] * len(made))
        )
        made.to_parquet(to or path, index=False)
    return column


def become_link(path: Path, target: Path):
    "Put a link in a file's or folder's place."
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif path.exists() or path.is_symlink():
        path.unlink()
    path.symlink_to(target)
