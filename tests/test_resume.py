"""Training that is killed and goes on: the same result to the last bit, whatever the moment."""

import io
import multiprocessing
import os
import random
import re
import shutil
import signal
import time
from functools import partial

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TinyDetector, as_tensors, same, write_ramps, write_toy
from safetensors.torch import load_file, save_file
from torch import nn

import prle.training.checkpoint
from prle.core import temporary_name
from prle.data.datasets import FaceDataset
from prle.data.manifest import read_manifest, select
from prle.detectors import create_detector
from prle.masking import PrimaryRegionMask, RandomMask
from prle.trainer import TrainConfig, predict, train

CONFIG = TrainConfig(epochs=5, batch_size=4, lr=1e-2, optimizer="AdamW", schedule="step 2 0.5")
LONG = TrainConfig(**{**vars(CONFIG), "epochs": 40})


class Dropping(TinyDetector):
    "Draws from torch's global stream in training, and has a schedule of its own."

    rate = 0.5

    def logit(self, x):
        return self.head(
            nn.functional.dropout(self.body(x), self.rate, self.training).mean((2, 3))
        ).flatten()

    def begin_epoch(self, epoch):
        self.rate = 0.5 * 0.8**epoch


@pytest.fixture
def data(toy, tmp_path):
    "The folder of the toy's manifest; its quantile maps lie beside it."
    write_ramps(tmp_path / "q", toy)
    return tmp_path


def fit(data, checkpoint, config=CONFIG, mask=None, seed=1, device="cpu"):
    "Train and score; weights, history and scores as tensors."
    torch.set_num_threads(1)
    rows = read_manifest(data / "toy/manifest.parquet")
    torch.manual_seed(seed)
    detector = Dropping()
    history = train(
        detector,
        select(rows, "train", "A"),
        select(rows, "val", "A"),
        config,
        mask or PrimaryRegionMask(),
        data / "q",
        device,
        checkpoint=checkpoint,
    )
    scores = predict(detector, FaceDataset(select(rows, "test")), device=device)
    return as_tensors(detector, history, scores)


def dying(operations, log):
    "Make file operation number `operations` of this process its last, and leave it half done; `log` gets its name."
    left = [operations]

    def die(function, half):
        def wrapped(*args, **kwargs):
            left[0] -= 1
            if left[0] > 0:
                return function(*args, **kwargs)
            half(*args)
            with open(log, "a") as f:
                f.write(f"{function.__name__} {place(function, args)}\n")
            os.kill(os.getpid(), signal.SIGKILL)

        return wrapped

    def place(function, args):
        at = args[0] if function.__name__ in ("rmtree", "write_tensors") else args[-1]
        return at.name if isinstance(at, io.IOBase) else at

    def write_half(path, _):
        return open(path, "wb").write(b"half")

    def fill_half(_, file):
        return (file.write(b"half"), file.flush())

    def remove_half(path, *_):
        return [p.unlink() for p in sorted(path.glob("*"))[:1]]

    prle.training.checkpoint.write_tensors, torch.save = (
        die(prle.training.checkpoint.write_tensors, write_half),
        die(torch.save, fill_half),
    )
    os.replace, os.rename, shutil.rmtree = (
        die(os.replace, lambda *_: None),
        die(os.rename, lambda *_: None),
        die(shutil.rmtree, remove_half),
    )


def work(data, operations, config):
    if operations:
        dying(operations, data / "log")
    result = fit(data, data / "checkpoint", config)
    save_file(result, data / "result.safetensors")


def start(*args):
    "A process that starts from a server which has imported all; so it dies alone."
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["prle.trainer", "prle.masking", "pytest"])
    process = context.Process(target=work, args=args)
    process.start()
    return process


def wait(process):
    process.join(300)
    assert process.exitcode is not None, "it hangs"
    return process.exitcode


def stopping(monkeypatch, epoch):
    "Interrupt a training after it has kept an epoch."
    real = prle.trainer.save_checkpoint

    def stop(folder, checkpoint):
        real(folder, checkpoint)
        if checkpoint.epochs == epoch:
            raise KeyboardInterrupt

    monkeypatch.setattr(prle.trainer, "save_checkpoint", stop)


def test_killed_in_each_file_operation_it_ends_as_if_nothing_had_been(data, monkeypatch):
    "From a checkpoint before the last epoch, beside which a killed process has left something, to the end."
    expected, operations, code = fit(data, None), 0, -signal.SIGKILL
    with monkeypatch.context() as patch:
        stopping(patch, CONFIG.epochs - 1)
        with pytest.raises(KeyboardInterrupt):
            fit(data, data / "begun")
    for name in (temporary_name(), ".prle-del-0123abcd"):
        shutil.copytree(data / "begun/epoch-3", data / "begun" / name)
    while code == -signal.SIGKILL:
        operations += 1
        shutil.rmtree(data / "checkpoint", ignore_errors=True)
        shutil.copytree(data / "begun", data / "checkpoint")
        code = wait(start(data, operations, CONFIG))
        assert same(fit(data, data / "checkpoint"), expected)
    assert code == 0
    hit = {
        re.sub(r"\S*/|-[0-9a-f]{8}$|-\d+$", "", line)
        for line in (data / "log").read_text().splitlines()
    }
    assert hit == {
        "write_tensors model.safetensors",
        "write_tensors average.safetensors",
        "write_tensors best.safetensors",
        "save state.pt",
        "replace checkpoint.json",
        "replace epoch",
        "rename .prle-del",
        "rmtree .prle-del",
    }


def test_killed_at_random_moments_it_ends_as_if_nothing_had_been(data):
    expected, draw = fit(data, None, LONG), random.Random(0)
    for epochs in (5, 12, 20, 27):
        process = start(data, None, LONG)
        while not any((data / f"checkpoint/epoch-{n}").exists() for n in range(epochs, 41)):
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.03))
        process.kill()
        assert wait(process) == -signal.SIGKILL
    assert wait(start(data, None, LONG)) == 0
    assert same(load_file(data / "result.safetensors"), expected)


KINDS = [
    dict(),
    dict(ema=0.0, optimizer="SGD"),
    dict(schedule="cosine", optimizer="Adam", accumulate=2),
    dict(precision="bf16"),
    dict(precision="fp16"),
]


@pytest.mark.parametrize("changes", KINDS)
def test_stopped_after_each_epoch_with_every_kind_of_state(data, monkeypatch, changes, device):
    config = TrainConfig(**{**vars(CONFIG), "epochs": 3, **changes})
    monkeypatch.setattr(
        torch.amp, "GradScaler", partial(torch.amp.GradScaler, growth_interval=2)
    )  # so that its scale moves in these few steps
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    expected = fit(data, None, config, device=device)
    for epoch in (1, 2, 3):
        stopping(monkeypatch, epoch)
        with pytest.raises(KeyboardInterrupt):
            fit(
                data, data / "checkpoint", config, seed=epoch, device=device
            )  # of the first weights, which matter in the first epoch alone
    resumed = fit(data, data / "checkpoint", config, seed=4, device=device)
    assert (
        same(resumed, expected)
        if device == "cpu"
        else all(
            torch.allclose(resumed[k].double(), expected[k].double(), atol=1e-4) for k in expected
        )
    )


@pytest.mark.parametrize("name", ["mat", "recce", "rfm", "capsule_v2"])
def test_detectors_with_draws_and_states_of_their_own_go_on_too(tmp_path, monkeypatch, name):
    write_toy(tmp_path, (64, 64))
    rows = read_manifest(tmp_path / "manifest.parquet")

    def fit(checkpoint):
        torch.manual_seed(0)
        detector = create_detector(name, width=1 / 8)
        history = train(
            detector,
            select(rows, "train", "A"),
            select(rows, "val", "A"),
            TrainConfig(epochs=2, batch_size=6),
            RandomMask(),
            checkpoint=checkpoint,
        )
        return {**detector.state_dict(), "loss": torch.tensor(history.loss.to_numpy())}

    expected = fit(None)
    stopping(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "checkpoint")
    assert same(fit(tmp_path / "checkpoint"), expected)


def test_the_number_of_workers_may_change(data):
    a = fit(data, data / "a")
    assert same(a, fit(data, data / "b", TrainConfig(**{**vars(CONFIG), "workers": 2})))
    assert same(a, fit(data, data / "b"))


def test_a_finished_training_is_not_trained_again(data, monkeypatch):
    expected = fit(data, data / "checkpoint")
    monkeypatch.setattr(prle.trainer.Trainer, "epoch", None)
    assert same(fit(data, data / "checkpoint"), expected)


def test_a_damaged_checkpoint_costs_its_epoch_only(data):
    expected = fit(data, data / "checkpoint")
    path = data / "checkpoint/epoch-5/average.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.warns(
        UserWarning,
        match="epoch-5/average.safetensors has changed since it was written; .* goes on after epoch 4",
    ):
        assert same(fit(data, data / "checkpoint"), expected)
    for n in (4, 5):
        (data / f"checkpoint/epoch-{n}/checkpoint.json").write_text("{")
    with pytest.warns(UserWarning, match="training starts anew"):
        assert same(fit(data, data / "checkpoint"), expected)


def test_another_training_is_refused(data):
    fit(data, data / "checkpoint", TrainConfig(**{**vars(CONFIG), "epochs": 1}))
    with pytest.raises(ValueError, match="config.epochs is 1 there and 5 here. Delete the folder"):
        fit(data, data / "checkpoint")
    fit(data, data / "other")
    with pytest.raises(
        ValueError, match=r"mask is .PrimaryRegionMask\(p=0.5.*there and .RandomMask\(p=0.5"
    ):
        fit(data, data / "other", mask=RandomMask())
    manifest = pd.read_parquet(data / "toy/manifest.parquet")
    manifest[manifest.path != "A/0_0.png"].to_parquet(data / "toy/manifest.parquet")
    with pytest.raises(ValueError, match="train.faces is 12 there and 11 here"):
        fit(data, data / "other")
    manifest.to_parquet(data / "toy/manifest.parquet")
    cv2.imwrite(str(data / "toy/A/0_0.png"), np.zeros((24, 32, 3), np.uint8))
    with pytest.raises(ValueError, match="another training: train.pictures is"):
        fit(data, data / "other")
