"""Training in several processes: the same result as in one, every face once, and all of them end together."""

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TinyDetector, as_tensors, same, write_toy
from kills import children
from test_experiments import write_square
from test_resume import Dropping
from torch import nn

import prle.trainer
from prle import cli
from prle.trust import read_json
from prle.data.datasets import FaceDataset
from prle.data.manifest import read_manifest, select
from prle.masking import RandomMask
from prle.training.processes import PATIENCE, Processes, check_processes, launch
from prle.training.processes import _hand_over, _work
from prle.trainer import BatchParts, TrainConfig, predict, train

CONFIG = TrainConfig(
    epochs=3, batch_size=7, lr=1e-2
)  # 12 faces: batches of 7 and 5, so of 4 + 3 and 3 + 2
WHOLE = TrainConfig(epochs=3, batch_size=12, lr=1e-2)
MIXED = TrainConfig(epochs=3, batch_size=6, lr=1e-2)
AUGMENTED = ["cutmix", "dropblock", "erasing"]
LONG = TrainConfig(epochs=25, batch_size=6, lr=1e-2)


class Plain(TinyDetector):
    "Without batch normalization, whose statistics are of a process's own faces."

    def __init__(self):
        super().__init__()
        self.body[1] = nn.Identity()


class Poisoned(Plain):
    "Diverges in one process only."

    def loss(self, outputs, batch):
        return super().loss(outputs, batch) * (float("nan") if os.environ["RANK"] == "1" else 1)


def rows(folder):
    return read_manifest(folder / "toy/manifest.parquet")


def fit(folder, network, config, accelerator=None, **kwargs):
    "Train and score three validation faces and eleven others, which two processes cannot share evenly."
    torch.manual_seed(0)
    detector, manifest = network(), rows(folder)
    val, test = select(manifest, "val", "A").iloc[:3], select(manifest, "test").iloc[:11]
    history = train(
        detector,
        select(manifest, "train", "A"),
        val,
        config,
        RandomMask(alpha=(0.0, 0.9)),
        accelerator=accelerator,
        **kwargs,
    )
    scores = predict(detector, FaceDataset(test), 4, accelerator=accelerator)
    return as_tensors(detector, history, scores)


def close(a, b):
    return a.keys() == b.keys() and all(
        torch.allclose(a[k].double(), b[k].double(), atol=2e-5) for k in a
    )


def watched(seen):
    "`TrainingFaces.__getitem__` that notes epoch, face and the picture after mask and flip."
    real = prle.trainer.TrainingFaces.__getitem__

    def get(self, key):
        item = real(self, key)
        seen.append(
            (
                *key,
                item["image"]
                .long()
                .mul(torch.arange(item["image"].numel()).view_as(item["image"]))
                .sum()
                .item(),
            )
        )
        return item

    return get


def error(function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except Exception as e:
        return f"{type(e).__name__}: {e}"


def interrupted(folder, accelerator, epoch, config=MIXED, name="checkpoint"):
    "Trained with a checkpoint, stopped after an epoch and taken up again."
    real = prle.trainer.Trainer.save

    def save_and_stop(self, folder):
        real(self, folder)
        if len(self.state.history.rows) == epoch:
            raise KeyboardInterrupt

    prle.trainer.Trainer.save = save_and_stop
    try:
        fit(folder, Dropping, config, accelerator, checkpoint=folder / name)
    except KeyboardInterrupt:
        prle.trainer.Trainer.save = real
    return fit(folder, Dropping, config, accelerator, checkpoint=folder / name)


def one_of_two(folder):
    "What each of the two processes does; its results are written for the test to compare."
    from accelerate import Accelerator
    from accelerate.tracking import GeneralTracker, on_main_process

    class Notes(GeneralTracker):
        name, requires_logging_directory, tracker = "notes", False, None

        @on_main_process
        def store_init_configuration(self, values):
            notes.append(values)

        @on_main_process
        def log(self, values, step, **kwargs):
            notes.append((step, values))

    notes, seen, got = [], [], {}
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True, log_with=[Notes()])
    got["count"] = accelerator.num_processes
    real, prle.trainer.TrainingFaces.__getitem__ = (
        prle.trainer.TrainingFaces.__getitem__,
        watched(seen),
    )
    got["equal"], got["seen"], got["notes"], got["drawn"] = (
        fit(folder, Plain, CONFIG, accelerator, desc="a name"),
        list(seen),
        list(notes),
        torch.rand(3),
    )
    prle.trainer.TrainingFaces.__getitem__ = real
    got["parts"] = fit(folder, Plain, TrainConfig(**{**vars(WHOLE), "accumulate": 3}), accelerator)
    got["mixed"] = fit(folder, Dropping, MIXED, accelerator)
    got["long"] = fit(folder, Dropping, LONG, accelerator)
    got["resumed"] = interrupted(folder, accelerator, 2)
    for name in AUGMENTED:
        config = TrainConfig(**{**vars(MIXED), "augment": name})
        got[name] = fit(folder, Dropping, config, accelerator)
        got[f"{name}, resumed"] = interrupted(folder, accelerator, 2, config, name)
    got["half"] = [
        fit(folder, Plain, TrainConfig(**{**vars(MIXED), "precision": p}), accelerator)
        for p in ("bf16", "fp16")
    ]
    got["one face"] = predict(Plain(), FaceDataset(rows(folder).iloc[:1]), accelerator=accelerator)
    got["diverged"] = error(fit, folder, Poisoned, CONFIG, accelerator)
    got["too few"] = error(
        fit, folder, Plain, TrainConfig(batch_size=64, accumulate=4), accelerator
    )
    torch.save(got, folder / f"{accelerator.process_index}.pt")
    accelerator.end_training()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    write_toy(folder / "toy")
    return folder


def port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


@pytest.fixture(scope="module")
def two(folder):
    "The results of two processes, started by accelerate as from a notebook."
    code = f"""
import test_distributed as t
from accelerate import notebook_launcher
notebook_launcher(t.one_of_two, (t.Path({str(folder)!r}),), num_processes=2, use_port={port()!r})
"""
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        check=True,
        cwd=Path(__file__).parent,
        timeout=400,
    )
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


def test_two_processes_with_half_the_batch_equal_one(folder, two):
    one = fit(folder, Plain, CONFIG)
    assert (
        [t["count"] for t in two] == [2, 2]
        and same(two[0]["equal"], two[1]["equal"])
        and close(two[0]["equal"], one)
    )
    assert not close(one, fit(folder, Plain, TrainConfig(**{**vars(CONFIG), "batch_size": 6}))), (
        "another batch would have been seen"
    )


def test_accumulating_in_two_processes_equals_one_batch_in_one(folder, two):
    one = fit(folder, Plain, WHOLE)
    assert close(two[0]["parts"], one) and close(
        fit(folder, Plain, TrainConfig(**{**vars(WHOLE), "accumulate": 6})), one
    )


def test_each_face_is_seen_once_an_epoch_masked_as_if_there_were_one_process(
    folder, two, monkeypatch
):
    seen = []
    monkeypatch.setattr(prle.trainer.TrainingFaces, "__getitem__", watched(seen))
    fit(folder, Plain, CONFIG)
    both = [s for t in two for s in t["seen"]]
    assert sorted(both) == sorted(seen) and sorted(s[:2] for s in both) == [
        (e, i) for e in range(3) for i in range(12)
    ]
    assert (
        all(abs(len(t["seen"]) - len(both) / 2) <= 3 for t in two)
        and len({s[2] for s in both}) > 30
    )


def test_scores_are_gathered_without_duplicates(two, folder):
    assert two[0]["equal"]["scores"].shape == (11,), "two processes would have padded to 12"
    assert all(len(t["one face"]) == 1 and t["one face"] == two[0]["one face"] for t in two)


def test_with_batch_normalization_both_end_with_the_same_network(two):
    assert same(two[0]["mixed"], two[1]["mixed"])


def test_dropout_is_drawn_from_another_stream_in_each(two):
    assert not torch.equal(two[0]["drawn"], two[1]["drawn"])


def test_half_precision_in_both(two):
    for a, b in zip(two[0]["half"], two[1]["half"]):
        assert same(a, b) and all(v.isfinite().all() for v in a.values())
    assert not torch.equal(two[0]["half"][0]["scores"], two[0]["half"][1]["scores"])


def test_two_processes_go_on_to_the_last_bit(two, folder):
    for t in two:
        assert same(t["resumed"], t["mixed"])
    with pytest.raises(ValueError, match="processes is 2 there and 1 here"):
        fit(folder, Dropping, MIXED, checkpoint=folder / "checkpoint")


@pytest.mark.parametrize("name", AUGMENTED)
def test_augmentations_draw_apart_and_end_with_the_same_network(two, name):
    for t in two:
        assert same(t[name], two[0][name]) and same(t[name], t[f"{name}, resumed"])
    assert not same(two[0][name], two[0]["mixed"])


def test_both_stop_when_one_diverges(two):
    assert all(
        t["diverged"].startswith(
            "FloatingPointError: the loss became nan in epoch 1; a lower lr than 0.01"
        )
        for t in two
    )


def test_too_few_faces_are_refused(two):
    assert all(
        "12 faces are too few to train on 2 processes with accumulate 4" in t["too few"]
        for t in two
    )


def test_trackers_are_told_once(two):
    (settings, *told), other = two[0]["notes"], two[1]["notes"]
    assert settings == vars(CONFIG) and other == []
    assert [step for step, _ in told] == [1, 2, 3] and [row["loss"] for _, row in told] == two[0][
        "equal"
    ]["history"][:, 1].tolist()


def test_one_process_with_an_accelerator_is_one_without(folder):
    from accelerate import Accelerator

    assert same(fit(folder, Dropping, MIXED, Accelerator(cpu=True)), fit(folder, Dropping, MIXED))


def machine(folder, rank, where):
    "A process that believes to be alone on the machine number `rank` of two."
    code = f"""
import torch, test_distributed as t
from pathlib import Path
from accelerate import Accelerator
torch.set_num_threads(1)
accelerator, folder = Accelerator(cpu=True), Path({str(folder)!r})
result = t.fit(folder, t.Dropping, t.LONG, accelerator, checkpoint=folder / "machines")
torch.save(result, folder / "machine{rank}.pt")
accelerator.end_training()
"""
    env = dict(
        os.environ,
        RANK=str(rank),
        LOCAL_RANK="0",
        WORLD_SIZE="2",
        LOCAL_WORLD_SIZE="1",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=where,
        GLOO_SOCKET_IFNAME="lo",
    )
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=Path(__file__).parent,
        env=env,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_machines_of_which_one_dies(folder, two):
    "The other ends with an error and does not wait for ever; started again, both end as if uninterrupted."

    def run(kill):
        where = port()
        both = [machine(folder, rank, where) for rank in (0, 1)]
        while kill and not (folder / "machines/epoch-3").exists() and both[0].poll() is None:
            time.sleep(0.01)
        if kill:
            both[1].kill()
        errors = [p.communicate(timeout=400)[1] for p in both]
        return [p.returncode for p in both], errors

    codes, errors = run(True)
    assert codes[1] == -signal.SIGKILL and codes[0] not in (0, -signal.SIGKILL), errors
    assert (
        len(list((folder / "machines").glob("epoch-*"))) == 2
        and not (folder / "machine0.pt").exists()
    )
    assert run(False)[0] == [0, 0]
    for rank in (0, 1):
        assert same(torch.load(folder / f"machine{rank}.pt", weights_only=True), two[0]["long"])


def test_a_batch_of_64_is_32_faces_on_each_of_two_gpus():
    config = TrainConfig(batch_size=64)
    parts = [list(BatchParts(1000, config, rank, 2)) for rank in (0, 1)]
    assert {len(p) for part in parts for p in part[:-1]} == {32}
    assert sorted(i for part in parts for p in part for _, i in p) == list(range(1000))
    from accelerate.commands.launch import launch_command_parser

    command = next(
        line.split()
        for line in chapter().splitlines()
        if line.strip().startswith("accelerate launch")
    )
    args = launch_command_parser().parse_args(command[2:])
    assert (
        args.multi_gpu
        and args.num_processes == 2
        and args.training_script == "train.py"
        and args.mixed_precision is None
    )


def chapter():
    "The chapter on training, where the command stands."
    notebook = json.loads((Path(__file__).parents[1] / "nbs" / "10_trainer.ipynb").read_text())
    return "\n".join("".join(cell["source"]) for cell in notebook["cells"])


def stumble(accelerator):
    "The second process diverges while the first waits for it, as long as maps may take to be made."
    group = torch.distributed.group.WORLD._get_backend(accelerator.device)
    assert group.options._timeout == PATIENCE >= timedelta(hours=12)
    if accelerator.process_index:
        raise FloatingPointError("the loss became nan in epoch 1")
    accelerator.wait_for_everyone()


def test_what_stops_one_process_ends_all_and_is_told():
    start = time.monotonic()
    with pytest.raises(FloatingPointError, match="the loss became nan in epoch 1"):
        launch(stumble, (), 2)
    assert time.monotonic() - start < 60


def test_a_tracker_that_is_not_installed_is_an_error(tmp_path):
    errors = tmp_path / "error"
    with pytest.raises(ImportError, match=r"'tensorboard' is not installed.*prle\[cluster\]"):
        _work(
            0,
            print,
            (),
            {},
            1,
            partial(lambda log_with: SimpleNamespace(log_with=[]), log_with="tensorboard"),
            errors,
        )
    assert isinstance(pickle.loads(errors.read_bytes()), ImportError)


def test_more_processes_than_gpus_are_refused(monkeypatch):
    for there, fits in ((0, 1), (1, 1), (2, 2)):
        monkeypatch.setattr(torch.cuda, "device_count", lambda there=there: there)
        assert check_processes(1, "cuda") == 1 and check_processes(4, "cpu") == 4
        with pytest.raises(
            ValueError,
            match=f"3 processes need a GPU each and this machine has {there}: lower processes to {fits}",
        ):
            check_processes(3, "cuda")
    for wrong in (0, 1.5, True):
        with pytest.raises(ValueError, match="processes must be a whole number above 0"):
            check_processes(wrong, "cpu")


def store_run(folder, *options):
    "The command that trains a network without batch normalization in the preset smoke, on the toy's faces."
    return [
        "train",
        "vgg16",
        "A",
        "--preset",
        "smoke",
        "--data",
        str(folder / "square"),
        "--outputs",
        str(folder / "out"),
        "--mask",
        "random",
        "--set",
        "epochs=12",
        "options={dropout: 0.0}",
        *options,
    ]


def test_a_run_of_the_store_in_two_processes(folder, capsys):
    "Killed at work, it goes on to the scores of one process and is there then; TensorBoard has every epoch."
    write_square(rows(folder), folder / "square")
    two = store_run(folder, "--processes", "2", "--track", "tensorboard")
    code = "import sys, torch; from prle.cli import main; torch.set_num_threads(2); sys.exit(main(sys.argv[1:]))"
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code, *two],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while (
        not list(folder.glob("out/runs/detectors/.*.partial-*/checkpoint-cpu/epoch-*"))
        and process.poll() is None
    ):
        time.sleep(0.005)
    members = children(process.pid)
    process.kill()
    assert process.wait() == -signal.SIGKILL and len(members) >= 2
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}/exe").exists() for pid in members) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not [pid for pid in members if Path(f"/proc/{pid}/exe").exists()], (
        "processes outlive the one that started them"
    )
    assert cli.main(two) == 0 and "goes on from what is left" in capsys.readouterr().err
    (run,) = (folder / "out/runs/detectors").glob("vgg16-A-random-*")
    assert (
        read_json(run / "config.json")["processes"] == 2
        and "processes=2" in run.name
        and read_json(run / "provenance.json")["resumed"]
    )
    assert {p.name for p in run.iterdir()} == {
        "config.json",
        "provenance.json",
        "model.safetensors",
        "history.parquet",
        "scores.parquet",
        "run.yaml",
    }
    assert cli.main(two) == 0 and "MISS" not in capsys.readouterr().err
    assert cli.main(store_run(folder)) == 0
    (one,) = set((folder / "out/runs/detectors").glob("vgg16-A-random-*")) - {run}
    a, b = (pd.read_parquet(path / "scores.parquet") for path in (one, run))
    assert (
        "processes" not in read_json(one / "config.json")
        and a.path.equals(b.path)
        and np.allclose(a.p_fake, b.p_fake, atol=2e-5)
    )
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    told = EventAccumulator(str(folder / "out/logs" / run.name.rsplit("-", 1)[0])).Reload()
    history = pd.read_parquet(run / "history.parquet")
    assert set(told.Tags()["scalars"]) == {"loss", "val_auc", "seconds"}
    assert {e.step: e.value for e in told.Scalars("loss")} == pytest.approx(
        dict(zip(history.epoch, history.loss))
    )


@pytest.mark.parametrize(
    "told, says",
    [
        (dict(distributed_type="FSDP"), "works by FSDP"),
        (
            dict(mixed_precision="fp16"),
            "mixed_precision='fp16' and the configuration precision='fp32'",
        ),
        (dict(gradient_accumulation_steps=4), "gradient_accumulation_steps=4: leave it at 1"),
    ],
)
def test_accelerators_that_would_do_the_trainers_work_are_refused(told, says):
    accelerator = type(
        "Told",
        (),
        dict(distributed_type="MULTI_GPU", mixed_precision="no", gradient_accumulation_steps=1)
        | told,
    )
    with pytest.raises(ValueError, match=says):
        Processes(accelerator=accelerator, precision="fp32")


def test_batches_that_are_too_small_for_all_are_refused():
    for batch, accumulate, count in ((6, 2, 4), (4, 1, 4), (7, 1, 4)):
        with pytest.raises(
            ValueError,
            match=f"batches of {batch} faces are too few to train on {count} processes "
            f"with accumulate {accumulate}: at least two a part",
        ):
            BatchParts(100, TrainConfig(batch_size=batch, accumulate=accumulate), 0, count)


def test_parts_of_a_batch_differ_by_one_face_at_most():
    for n, batch, accumulate, count in ((100, 17, 2, 2), (64, 64, 4, 3), (50, 9, 1, 4)):
        config = TrainConfig(batch_size=batch, accumulate=accumulate)
        parts = [list(BatchParts(n, config, rank, count)) for rank in range(count)]
        assert len({len(p) for p in parts}) == 1 and all(
            len(p) == len(BatchParts(n, config, 0, count)) for p in parts
        )
        for step in range(len(parts[0]) // accumulate):
            sizes = [
                len(part) for p in parts for part in p[step * accumulate : (step + 1) * accumulate]
            ]
            assert max(sizes) - min(sizes) <= 1 and min(sizes) >= 2
            assert np.isin(sum(sizes), [batch, n % batch])


class Two(Exception):
    "Cannot be rebuilt from its arguments."

    def __init__(self, a, b):
        super().__init__(a)


def test_what_stopped_a_process_is_handed_over_whole_or_not_at_all(tmp_path):
    "However long it is; the first one counts."
    place = tmp_path / "error"
    _hand_over(Two(1, 2), place)
    assert not place.exists()
    _hand_over(ValueError("x" * 10**6), place)
    _hand_over(ValueError("later"), place)
    assert str(pickle.loads(place.read_bytes())) == "x" * 10**6
