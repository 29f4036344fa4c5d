"""prle.lab.programs: a detector as a program that runs without the package."""

import sys

import numpy as np
import pytest
import torch

from conftest import randomise_batch_norm
from prle.detectors import create_detector
from prle.lab.programs import PROGRAMS, write_program


def a_detector():
    "A detector whose scores differ from face to face, as if it were trained."
    detector = randomise_batch_norm(create_detector("xception", width=1 / 8))
    last = [m for m in detector.modules() if isinstance(m, torch.nn.Linear)][-1]
    torch.nn.init.normal_(last.weight, std=1.0)
    return detector


@pytest.fixture
def small():
    return a_detector()


@pytest.mark.parametrize("form", PROGRAMS)
def test_a_program_gives_the_same_scores(small, tmp_path, form):
    "For any number of faces."
    if form == "onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    program = PROGRAMS[form].open(write_program(small, 64, form, tmp_path))
    for faces in (torch.rand(n, 3, 64, 64) for n in (1, 5)):
        scores = small(faces).sigmoid().detach().numpy()
        assert len(scores) == 1 or np.ptp(scores) > 1e-3
        assert program(faces).sigmoid().detach().numpy() == pytest.approx(scores, abs=1e-4)


def test_a_program_that_differs_is_refused(small, tmp_path, monkeypatch):
    other, real = a_detector(), PROGRAMS["torchscript"]

    def write(detector, faces, path):
        real.write(other, faces, path)

    monkeypatch.setitem(PROGRAMS, "torchscript", real._replace(write=write))
    with pytest.raises(ValueError, match="scores differ by"):
        write_program(small, 64, "torchscript", tmp_path)


def test_what_onnx_needs_is_named(small, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"prle\[onnx\]"):
        write_program(small, 64, "onnx", tmp_path)
