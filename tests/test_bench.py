"nbs/bench/gpu.ipynb: it goes through on a CPU, and says why it measures nothing without a GPU."

from pathlib import Path

import nbformat
import pytest
import torch

NOTEBOOK = Path(__file__).parents[1] / "nbs/bench/gpu.ipynb"
SMALL = dict(device="cpu", batch_size=4, size=64, people=6, forging=1, workers=[0], repeats=1)
SMALL |= dict(detectors={"Xception": "xception"}, zoo=["xception"], width=1 / 8, settings=["fp32"])


def execute(**parameters):
    "Execute the notebook's cells here; return the names that it leaves, and what it displays."
    shown = []
    names = dict(display=shown.append)
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        if cell.cell_type == "code":
            exec(compile(cell.source, NOTEBOOK.name, "exec"), names)
        if "parameters" in cell.metadata.get("tags", []):
            names.update(parameters)
    return names, shown


def test_without_a_gpu_nothing_is_measured(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    _, shown = execute()
    assert shown == [] and "has no GPU" in capsys.readouterr().out


def test_everything_is_measured_once(capsys):
    names, (trained, transfer, functions, static) = execute(**SMALL)
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
