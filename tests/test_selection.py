"""prle.lab.selection: the epochs of a training, and what choosing among them otherwise would gain."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from prle import cli
from prle.core import rng
from prle.lab.configs import PRESETS
from prle.lab.experiments import read_scores
from prle.lab.selection import epoch_scores, selection, selection_of
from prle.metrics import auc
from prle.trainer import TrainConfig, train
from prle.trust import read_table
from conftest import TinyDetector
from test_experiments import TINY, quiet_lab, write_square


@pytest.fixture
def lab(toy, tmp_path, monkeypatch):
    monkeypatch.setitem(PRESETS, "tiny", TINY)
    return quiet_lab(write_square(toy, tmp_path / "square"), tmp_path / "out")


def test_the_second_training_is_the_first_one(lab, tmp_path, capsys):
    config = lab.config("Small", "A", mask="random", epochs=3)
    run = lab.train(config)
    made = epoch_scores(lab, config)
    scores, history = (read_table(made.path / f"{n}.parquet") for n in ("scores", "history"))
    first = read_table(run.path / "history.parquet")
    assert np.array_equal(history[["loss", "val_auc"]], first[["loss", "val_auc"]])
    chosen = int(history.epoch[history.chosen].iloc[0])
    own = scores[(scores.epoch == chosen) & (scores.set == "test")]
    assert own.p_fake.to_numpy() == pytest.approx(read_scores(run).p_fake.to_numpy(), abs=1e-6)
    assert sorted(scores.epoch.unique()) == [1, 2, 3]
    table = selection_of(lab, run)
    assert table.set.tolist() == ["test", "test: A", "test: B"] and (table.gain >= 0).all()
    words = ["evaluate", run.path.name, "--selection", "--outputs", str(lab.outputs)]
    assert cli.main(words) == 0 and "oracle" in (printed := capsys.readouterr().out)
    moved = Path(lab.data).parent.rename(tmp_path / "moved")
    assert cli.main([*words, "--data", str(moved)]) == 0
    assert capsys.readouterr().out == printed, "where the data lie now does not matter"


def test_watching_changes_nothing(toy):
    rows = [toy[toy.split == split] for split in ("train", "val")]
    for part in rows:
        part.attrs = toy.attrs
    seen, ends = [], []
    for watch in (None, lambda net, epoch: seen.append((epoch, net.training))):
        net = TinyDetector()
        net.load_state_dict({k: v * 0 + 0.1 for k, v in net.state_dict().items()})
        history = train(net, *rows, TrainConfig(epochs=2, batch_size=4), watch=watch)
        ends.append(history.loss.tolist())
    assert ends[0] == ends[1] and [epoch for epoch, _ in seen] == [0, 1]


def test_the_oracle_is_the_best_epoch_of_each_set():
    draw, label = rng("selection"), np.tile([0, 1], 30)
    faces = pd.DataFrame(dict(label=label, dataset="d", video=range(60)))
    faces["identity"], faces["subset"] = np.arange(60) // 2, np.where(label == 1, "DF", "real")
    parts = []
    for name, gains in dict(near=(0, 3, 1), far=(1, 0.2, 3)).items():
        for epoch, gain in enumerate(gains, 1):
            p_fake = gain * label + draw.normal(size=60)
            parts.append(faces.assign(set=name, epoch=epoch, p_fake=p_fake))
    scores = pd.concat(parts, ignore_index=True)
    table = selection(scores, chosen=2, n=100).set_index("set")
    assert table.best.to_dict() == dict(near=2, far=3)
    assert table.gain["near"] == table.low["near"] == table.high["near"] == 0
    assert table.low["far"] > 0
    part = scores[(scores.set == "far") & (scores.epoch == 2)]
    expected = 100 * auc(part.label.to_numpy(), part.p_fake.to_numpy())
    assert table.validation["far"] == pytest.approx(expected)
    assert table["last"]["far"] == table.oracle["far"] != table.validation["far"]


def test_a_training_that_renews_its_maps_is_refused(lab):
    config = lab.config("Small", "A", mask="primary", epochs=3, renew=1)
    with pytest.raises(ValueError, match="renews its maps"):
        epoch_scores(lab, config)
