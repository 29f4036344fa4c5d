"""prle.lab.programs: a detector as a program that runs without the package."""

import sys

import pytest
import torch

from prle.detectors import create_detector
from prle.lab.programs import PROGRAMS, write_program


@pytest.fixture
def small():
    return create_detector("xception", width=1 / 8).eval()


@pytest.mark.parametrize("form", PROGRAMS)
def test_a_program_gives_the_same_scores(small, tmp_path, form):
    "For any number of faces."
    if form == "onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    program = PROGRAMS[form].open(write_program(small, 64, form, tmp_path))
    for faces in (torch.rand(n, 3, 64, 64) for n in (1, 5)):
        scores = small(faces).sigmoid().detach().numpy()
        assert program(faces).sigmoid().detach().numpy() == pytest.approx(scores, abs=1e-4)


def test_a_program_that_differs_is_refused(small, tmp_path, monkeypatch):
    other = create_detector("xception", width=1 / 8).eval()
    real = PROGRAMS["torchscript"]

    def write(detector, faces, path):
        real.write(other, faces, path)

    monkeypatch.setitem(PROGRAMS, "torchscript", real._replace(write=write))
    with pytest.raises(ValueError, match="scores differ by"):
        write_program(small, 64, "torchscript", tmp_path)


def test_what_onnx_needs_is_named(small, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"prle\[onnx\]"):
        write_program(small, 64, "onnx", tmp_path)
