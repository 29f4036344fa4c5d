"""Benchmarks go through: the GPU's on a CPU, where it says why it measures nothing; that of the detectors with two."""

from pathlib import Path

import nbformat
import pytest
import torch

BENCH = Path(__file__).parents[1] / "nbs/bench"
SMALL = dict(device="cpu", batch_size=4, size=64, people=6, forging=1, workers=[0], repeats=1)
SMALL |= dict(detectors={"Xception": "xception"}, zoo=["xception"], width=1 / 8, settings=["fp32"])


def execute(name, until="", **parameters):
    "Execute a notebook's cells here, up to a heading; return the names that it leaves, and what it displays."
    shown = []
    names = dict(display=shown.append)
    for cell in nbformat.read(BENCH / f"{name}.ipynb", as_version=4).cells:
        if until and cell.source.startswith(until):
            break
        if cell.cell_type == "code":
            exec(compile(cell.source, name, "exec"), names)
        if "parameters" in cell.metadata.get("tags", []):
            names.update(parameters)
    return names, shown


def test_without_a_gpu_nothing_is_measured(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    _, shown = execute("gpu")
    assert shown == [] and "has no GPU" in capsys.readouterr().out


def test_everything_is_measured_once(capsys):
    names, (trained, transfer, functions, static) = execute("gpu", **SMALL)
    assert (
        trained.detector.tolist() == ["Xception"]
        and (trained[["plain", "PRLE"]].to_numpy() > 0).all()
    )
    assert set(transfer.index) == {"step", "transfer"}
    assert set(functions.index) == {"forward", "localize", "fuse", "rank", "mask"}
    rates = static["faces/s"]
    assert rates.item() == pytest.approx(
        len(names["rows"]) / names["seconds"]["static stage"][0], 0.1
    )
    said = capsys.readouterr().out
    assert "2.7 % in the paper" in said and "10 in the paper" in said


def test_steps_of_detectors_are_timed_in_turn():
    few = ["EfficientNet-Lite1", "xception", "meso4"]
    names, _ = execute("detectors", until="## RFM", rounds=1, names=few)
    assert list(names["rows"]) == few and names["rows"]["xception"]["ratio"] == 1
    assert all(row["ms"] > 0 for row in names["rows"].values())
