"""Fixtures that several test files share: a tiny data set on disk and a tiny detector."""

import logging
import os

os.environ["PRLE_QUIET"] = "1"

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from prle.core import rng, show_messages
from prle.data.manifest import read_manifest, write_manifest
from prle.detectors.registry import Detector, Weights, create_detector, size_option
from prle.trust import write_digests

torch.set_num_threads(1)

LONGEST = (
    "reproduce",
    "real_data",
    "detectors",
    "engines",
    "benchmark",
    "userstudy",
    "audit",
    "videos",
    "userstudy_browser",
    "distributed",
    "experiments",
    "resume",
    "campaign",
    "layouts",
)
"The test files that take half a minute or more, as measured: the workers of `make test` begin with them."


def pytest_collection_modifyitems(items):
    "Put the longest files first."
    ranks = {f"test_{name}.py": rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path.name, len(ranks)))


def write_toy(folder, size=(24, 32), people=6, photos=2, bright=60):
    """Write noise faces of `people` identities: half of them train, then val, then test.

    The fakes of A are brighter, those of B carry stripes."""
    draw, rows = rng("toy"), []
    for person in range(people):
        split = "train" if person < people // 2 else "val" if person == people // 2 else "test"
        for photo in range(photos):
            base = draw.integers(0, 120, size=(*size, 3), dtype=np.uint8)
            stripes = base.copy()
            stripes[::2] += 100
            for subset, image in dict(real=base, A=base + np.uint8(bright), B=stripes).items():
                path = f"{subset}/{person}_{photo}.png"
                (folder / subset).mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(folder / path), image)
                x, y = (draw.uniform(2, side - 2, 68) for side in size[::-1])
                points = np.stack([x, y], axis=1).astype(np.float32)
                rows.append(
                    dict(
                        path=path,
                        label=int(subset != "real"),
                        dataset="toy",
                        subset=subset,
                        video=f"{person}_{photo}",
                        identity=f"p{person}",
                        source_identity="",
                        frame=0,
                        split=split,
                        compression="none",
                        landmarks=points.ravel(),
                        transform=[],
                        mask="",
                    )
                )
    return write_manifest(pd.DataFrame(rows), folder / "manifest.parquet")


@pytest.fixture(autouse=True)
def seeded():
    "Draw the same in every run; torch seeds itself from the machine's entropy."
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def quiet_log(monkeypatch):
    "Messages are not printed, unless a command asks for that; the test after it starts anew."
    log = logging.getLogger("prle")
    monkeypatch.setattr(log, "handlers", [])
    level = log.level
    yield
    log.setLevel(level)


@pytest.fixture
def shown(quiet_log):
    "Messages are printed, as in a notebook."
    show_messages()


@pytest.fixture
def lines(quiet_log, monkeypatch):
    "The messages of the test, of any level, as a list that grows."
    said, collector, log = [], logging.Handler(), logging.getLogger("prle")
    monkeypatch.setattr(collector, "emit", lambda record: said.append(record.getMessage()))
    monkeypatch.setattr(log, "handlers", [collector])
    log.setLevel(logging.DEBUG)
    return said


@pytest.fixture
def command(capsys):
    "Words -> (exit code, what the command printed, what it complained)."
    from prle import cli

    def run(*words):
        capsys.readouterr()
        return (cli.main([str(word) for word in words]), *capsys.readouterr())

    return run


@pytest.fixture
def toy(tmp_path):
    return read_manifest(write_toy(tmp_path / "toy"))


class TinyDetector(Detector):
    """One convolution, batch norm, one logit: enough to be trained in a test."""

    def __init__(self):
        super().__init__(Weights("none", "none", 24), ("body.0",))
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Linear(4, 1)

    def logit(self, x):
        return self.head(self.body(x).mean((2, 3))).flatten()


NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=NEEDS_GPU)])
def device(request):
    "Every device of this machine, one after the other."
    return request.param


@pytest.fixture
def tiny():
    torch.manual_seed(0)
    return TinyDetector()


def write_ramps(folder, rows):
    "Write to every face of the toy data set a quantile map: every pixel attended, the top left one most."
    ramp = np.ceil(65535 * (np.arange(24 * 32) + 1) / (24 * 32)).astype(np.uint16).reshape(24, 32)
    for path in rows.path:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / path), ramp)
    write_digests(folder)
    return folder


def as_tensors(detector, history, scores):
    "All that a training came to, but its time."
    told = dict(
        history=torch.tensor(history.drop(columns="seconds").astype(float).to_numpy()),
        scores=torch.from_numpy(scores),
    )
    return {k: v.cpu().contiguous() for k, v in (detector.state_dict() | told).items()}


def same(a, b):
    "Whether two dictionaries hold equal tensors, to the last bit."
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def snapshot(folder):
    "All that lies below, links not followed."
    return {
        p: os.readlink(p) if p.is_symlink() else p.read_bytes() if p.is_file() else "folder"
        for p in folder.rglob("*")
    }


def small(name, size=64, **options):
    "A detector with an eighth of its channels."
    torch.manual_seed(0)
    return create_detector(name, width=1 / 8, **size_option(name, size), **options)


def meta(name, **options):
    "A detector without memory: shapes and counts only."
    with torch.device("meta"):
        return create_detector(name, **options)


def randomise_batch_norm(model):
    "Statistics and affine parameters as after training, so that a swapped or forgotten one shows."
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.1)
            m.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.normal_(m.bias, 0, 0.1)
    return model.eval()
