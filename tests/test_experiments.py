"""prle.lab.experiments: configurations and the graph."""

import dataclasses
import pickle
import re
import threading
from pathlib import Path
import time

import cv2
import nbformat
import numpy as np
import pandas as pd
import pytest
import torch

from prle.core import digest, write_json
from prle.trust import mark_folder, read_json
from prle.lab.configs import (
    FURTHER,
    PRESETS,
    PUBLISHED,
    READING,
    Backbone,
    CamConfig,
    FusionConfig,
    Preset,
    RunConfig,
    Zoo,
)
from prle.lab import labdata
from prle.lab.experiments import Lab, Wanted, load_detector, read_scores
from prle.lab.labdata import data_fingerprint, data_sets
from prle.lab.planning import plan_text, planned, task_inputs
from prle.lab.store import RunFailed
from prle.trainer import TrainConfig, Trainer, predict
from prle.data.crops import read_quantiles, read_rgb
from prle.data.datasets import FaceDataset
from prle.data.manifest import read_manifest, select, write_manifest
from prle.detectors import create_detector
from prle.detectors.registry import size_option
from prle.localization import EXPLAINED, attention_maps
from prle.masking import region


TINY = Preset(
    size=64,
    people=8,
    backbones={"Small": Backbone("xception", 1 / 8), "Other": Backbone("vgg16", 1 / 8)},
    recipe=dict(epochs=1, batch_size=4),
    grid=4,
    width=1 / 8,
)


def quiet_lab(data, outputs):
    return Lab("tiny", data=data, outputs=outputs)


@pytest.fixture
def lab(toy, tmp_path, monkeypatch):
    "A lab on the toy faces, with two tiny backbones."
    monkeypatch.setitem(PRESETS, "tiny", TINY)
    return quiet_lab(write_square(toy, tmp_path / "square"), tmp_path / "out")


def write_square(toy, folder):
    "The toy faces at 64 x 64 pixels; their manifest."
    for path in toy.path:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        face = cv2.resize(read_rgb(f"{toy.attrs['root']}/{path}"), (64, 64))
        cv2.imwrite(str(folder / path), face)
    return write_manifest(toy, folder / "manifest.parquet")


def config_of(run):
    return read_json(run.path / "config.json")


def label_of(run):
    return run.path.name.rsplit("-", 1)[0]


def test_unknown_names_stop_at_once(tmp_path):
    with pytest.raises(ValueError, match="unknown preset 'minni'.*Did you mean 'mini'"):
        Lab("minni")
    with pytest.raises(ValueError, match="unknown mask 'primry'.*'primary'"):
        RunConfig("xception", "DF", mask="primry")
    with pytest.raises(ValueError, match="unknown fusion 'neighbor'.*'neighbour'"):
        FusionConfig("neighbor")
    with pytest.raises(ValueError, match="unknown fill 'zeros'.*'zero'"):
        RunConfig("xception", "DF", mask="primary", fill="zeros")
    with pytest.raises(ValueError, match="'paper' needs real data"):
        Lab("paper", outputs=tmp_path)


CONFIG = """detector: xception
subset: DF
options: {dropout: 0.1}
mask: primary
fusion: {method: neighbour, tau: 0.3}
zoo: [Xception, VGG]
alpha: dynamic
recipe: {epochs: 3, batch_size: 16, lr: 1.0e-3, schedule: cosine}
"""
STRANGE = [
    "[]",
    "{}",
    "null",
    "[[1]]",
    "{a: 1}",
    "1e400",
    "1" + ":1" * 300,
    "-1",
    "x",
    "'" + "x" * 5000 + "'",
    ".nan",
    "2024-01-01",
    "!!binary aGk=",
    "!!python/object:os.system x",
    "&a [*a]",
]


@pytest.mark.parametrize("seed", range(20))
def test_a_damaged_configuration_is_named(tmp_path, seed):
    "Strange values, flipped bytes, missing ends: read as what they say, or refused on one short line."
    draw, path = np.random.default_rng(seed), tmp_path / "run.yaml"
    for _ in range(10):
        lines, text = CONFIG.splitlines(), bytearray(CONFIG.encode())
        k = draw.integers(len(lines))
        lines[k] = f"{lines[k].split(':')[0]}: {STRANGE[draw.integers(len(STRANGE))]}"
        text[draw.integers(len(text))] = draw.integers(256)
        for content in (
            "\n".join(lines).encode(),
            bytes(text),
            bytes(text[: draw.integers(len(text))]),
        ):
            path.write_bytes(content)
            try:
                assert isinstance(RunConfig.read(path), RunConfig)
            except ValueError as e:
                assert str(path) in str(e) and len(str(e)) < 700 and "\n" not in str(e)


def test_unknown_backbones_and_manipulations_name_the_nearest(lab):
    with pytest.raises(ValueError, match="unknown backbone 'small'.*Did you mean 'Small'"):
        lab.config("small", "A")
    with pytest.raises(ValueError, match="unknown manipulation 'DF'"):
        lab.config("Small", "DF")


def test_any_registered_detector_trains_by_name(lab):
    "Table II: at the preset's width, built for the preset's faces where it has to be."
    for name, options in dict(cvit=dict(size=64), meso4=dict(size=64), rfm={}).items():
        run = lab.detector(name, "A")
        assert config_of(run)["options"] == options
        p_fake = predict(load_detector(run), FaceDataset(select(lab.manifest, "test")))
        assert np.isfinite(p_fake).all()


def test_a_detector_beside_the_backbones_has_the_presets_size():
    paper, mini = PRESETS["paper"], PRESETS["mini"]
    assert paper.backbone("srm") == Backbone("srm", width=1.0, pretrained=True)
    assert not paper.backbone("meso4").pretrained
    assert mini.backbone("meso4").options == dict(momentum=0.1)
    assert mini.backbone("VGG").name == "vgg16_bn"


def test_a_detector_run_is_whole_and_loads(lab):
    run = lab.detector("Small", "A")
    assert {p.name for p in run.path.iterdir()} == {
        "config.json",
        "provenance.json",
        "model.safetensors",
        "history.parquet",
        "scores.parquet",
        "run.yaml",
    }
    table, test = read_scores(run), select(lab.manifest, "test")
    assert table.path.tolist() == test.path.tolist() and table.p_fake.between(0, 1).all()
    assert np.allclose(predict(load_detector(run), FaceDataset(test)), table.p_fake, atol=1e-6)
    assert read_json(run.path / "provenance.json")["code"] == lab.store.code


@pytest.mark.parametrize("name", ["ffd", "mat"])
def test_baselines_train_with_primary_masks(name, lab, monkeypatch):
    "With losses and faces of their own: FFD's batches carry a manipulation mask beside the primary one."
    root = lab.manifest.attrs["root"]
    cv2.imwrite(f"{root}/mask.png", np.full((64, 64), 255, np.uint8))
    lab.manifest["mask"] = np.where(lab.manifest.label == 1, "mask.png", "")
    seen, kind = [], type(create_detector(name, width=1 / 8))
    loss = kind.loss
    monkeypatch.setattr(
        kind, "loss", lambda self, outputs, batch: seen.append(batch) or loss(self, outputs, batch)
    )
    run = lab.detector(name, "A", mask="primary", p=1.0)
    assert read_scores(run).p_fake.between(0, 1).all() and seen
    for batch in seen:
        assert (batch["image"] == 0).all(1).float().mean() > 0.01, "pixels are masked"
        if name == "ffd":
            assert torch.equal(batch["mask"].amax((1, 2, 3)), batch["label"].float())
            assert batch["mask_known"].all()


def test_primary_needs_the_zoo_and_shares_it(lab):
    run = lab.detector("Small", "A", mask="primary")
    kinds = pd.Series([name.split("/")[0] for name in lab.store.names()]).value_counts().to_dict()
    assert kinds == dict(detectors=3, maps=2, fusions=1)
    lab.detector("Other", "A", mask="primary")
    assert len(lab.store.names()) == 7, "one more training, nothing else"
    assert config_of(run)["quantiles"] == lab.quantiles(Zoo("A")).key


def test_keys_follow_what_a_run_depends_on(lab):
    dry = lab.dry()
    variants = [
        dict(subset="A"),
        dict(subset="B"),
        dict(subset="A", seed=1),
        dict(subset="A", mask="random"),
    ]
    assert len({dry.detector("Small", **v).key for v in variants}) == 4
    zoos = [
        Zoo("A"),
        Zoo("A", fusion=FusionConfig(lam=0.2)),
        Zoo("A", backbones=("Small",)),
        Zoo("A", 1),
    ]
    assert len({dry.quantiles(zoo).key for zoo in zoos}) == 4


def test_the_hash_of_data_is_of_their_sizes_too(lab):
    rows = lab.manifest.assign(path=lab.manifest.path[0], mask=lab.manifest.path[1])
    rows.attrs["root"], seen = lab.manifest.attrs["root"], {data_fingerprint(rows)}
    for name in lab.manifest.path[:2]:  # of the only crop; of the only mask
        with open(f"{rows.attrs['root']}/{name}", "ab") as f:
            f.write(b"x")
        seen.add(data_fingerprint(rows))
    assert len(seen) == 3


def test_same_configuration_same_scores_other_seed_other_scores(lab, tmp_path):
    first = lab.detector("Small", "A", mask="random")
    second = quiet_lab(lab.data, tmp_path / "elsewhere").detector("Small", "A", mask="random")
    seed = lab.detector("Small", "A", mask="random", seed=1)
    assert first.key == second.key and first.path != second.path
    assert np.array_equal(read_scores(first).p_fake, read_scores(second).p_fake)
    assert not np.array_equal(read_scores(first).p_fake, read_scores(seed).p_fake)


def test_maps_lie_on_the_grid_in_the_faces_order(lab):
    maps = np.load(lab.maps(Zoo("A", backbones=("Small",)))[0].path / "maps.npy")
    assert len(maps) == len(lab.train_faces("A"))
    assert maps.shape[1] >= 4 and maps.dtype == np.float16


def test_statistics_are_those_of_the_maps(lab):
    zoo = Zoo.single("A", 0, "Small")
    run = lab.statistics(zoo)
    shares = pd.read_parquet(run.path / "shares.parquet")
    counts = np.load(run.path / "histogram.npy")
    maps = np.concatenate([m.numpy() for m in lab.fused_maps(zoo)])
    assert np.allclose(shares["above 0.3"], (maps > 0.3).mean((1, 2)))
    assert np.allclose(shares["above 0"], (maps > 0).mean((1, 2)))
    assert counts.sum() == maps.size == len(shares) * 64 * 64
    some = next(lab.fused_maps(zoo, rows=np.array([3, 1])))
    assert np.array_equal(some.numpy(), maps[[3, 1]])


def test_all_manipulations_at_once_are_balanced(lab):
    config = lab.config("Small", "all")
    assert config.recipe.balance and not lab.config("Small", "A").recipe.balance
    rows = lab.train_faces("all")
    assert set(rows.subset) == {"real", "A", "B"} and rows.label.mean() == 2 / 3
    run = lab.detector("Small", "all", "primary", zoo=("Small",))
    assert config_of(run)["recipe"]["balance"]


def test_what_is_the_same_is_one_run(lab):
    "However it is written, and however much of it a mask does not use."
    lab = lab.dry()
    same = [
        dict(mask="none"),
        dict(mask="none", p=0.2),
        dict(mask="none", fusion=FusionConfig("mean")),
        dict(mask="none", alpha="static", fill="noise"),
        dict(zoo=("Small",)),
    ]
    assert len({lab.detector("Small", "A", **s).path for s in same}) == 1
    same = [dict(gamma=0.5), dict(workers=2), dict()]
    assert len({lab.detector("Small", "A", **s).path for s in same}) == 1
    same = [
        dict(zoo=("Small", "Other")),
        dict(zoo=["Other", "Small"]),
        dict(zoo=()),
        dict(alpha=(0, 1)),
        dict(alpha=[0.0, 1.0]),
    ]
    assert len({lab.detector("Small", "A", "primary", **s).path for s in same}) == 1
    other = [
        dict(zoo=("Other",)),
        dict(fusion=FusionConfig("mean", tau=0.1)),
        dict(alpha="static"),
        dict(gamma=0.5),
        dict(p=0.2),
        dict(fill="noise"),
    ]
    assert len({lab.detector("Small", "A", "primary", **o).key for o in other}) == len(other)
    for same in (
        [dict(p=1), dict(p=1.0)],
        [dict(width=1), dict(width=1.0), dict(width=np.float64(1))],
        [dict(fusion=FusionConfig(tau=0)), dict(fusion=dict(tau=0.0, lam=0.15))],
    ):
        configs = [lab.config("Small", "A", mask="primary", **s) for s in same]
        assert len(set(map(str, configs))) == len({lab.train(c).key for c in configs}) == 1
    run = lab.detector("Small", "A", "primary", alpha="static", gamma=0.5)
    assert label_of(run) == "Small-A-primary-alpha=1..1-gamma=0.5-s0"


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(alfa=1), "unknown parameter 'alfa'. Did you mean 'alpha'"),
        (dict(alpha="statik"), "unknown alpha policy 'statik'. Did you mean 'static'"),
        (dict(p=2), r"p must lie in \[0, 1\]"),
        (dict(epochs=0), "epochs must be a whole number above 0"),
        (dict(alpha=(0, 1.2)), "alpha must be"),
        (dict(zoo=("Smal",)), "unknown backbone 'Smal'. Did you mean 'Small'"),
        (dict(fill="zeros"), "unknown fill 'zeros'"),
        (dict(alpha=0.5), "alpha must be dynamic, static or two numbers, .*not 0.5"),
        (dict(alpha=(0.1,)), "alpha must be .* two numbers"),
        (dict(alpha=("a", 1)), "alpha must be"),
        (dict(p=None), r"p must lie in \[0, 1\], not None"),
        (dict(p=True), "p must lie in"),
        (dict(zoo=None), "zoo must be a list of backbones' names, not None"),
        (dict(zoo="Small"), "zoo must be a list"),
        (dict(width=float("inf")), "width must be a positive number, not inf"),
        (dict(width=True), "width must be a positive number, not True"),
        (dict(fill=None), "fill must be a word, not None"),
        (
            dict(pretrained=True),
            "pretrained must be False: there are no ImageNet weights of xception at width 0.125",
        ),
        (dict(options=[]), r"options must be names and values, not \[\]"),
        (dict(options={1: 2}), "options must be names and values"),
        (dict(options=dict(dropuot=0.5)), "'xception' has no option 'dropuot'"),
        (dict(options=dict(dropout=7)), "dropout"),
    ],
)
def test_wrong_parameters_stop_before_anything_is_made(lab, change, message):
    with pytest.raises(ValueError, match=message):
        lab.detector("Small", "A", "primary", **change)
    assert not (lab.outputs / "runs").exists()
    for wrong in (1.5, "0.1", None, float("nan")):
        with pytest.raises(ValueError, match=rf"lam must lie in \[0, 1\], not {wrong!r}"):
            FusionConfig(lam=wrong)
    with pytest.raises(ValueError, match="p must lie in .*not '0.5'"):
        RunConfig("xception", "A", p="0.5")
    with pytest.raises(ValueError, match="subset must be the name of a manipulation"):
        RunConfig("xception", "")


def test_a_detector_for_faces_of_another_size_stops_before_its_zoo_is_trained(lab):
    wrong = RunConfig("cvit", "A", "tiny", lab.data, 1 / 8, options=dict(size=224), mask="primary")
    with pytest.raises(ValueError, match="built for faces of 224 x 224 pixels, not 64 x 64"):
        lab.train(wrong)
    assert not (lab.outputs / "runs").exists()
    options = lab.config("cvit", "A", options=dict(dropout=0.1)).options
    assert options == dict(size=64, dropout=0.1), "what is not said stays the preset's"


def test_every_named_backbone_has_a_fine_grid_in_every_preset_that_can_be_built_here():
    for preset in (PRESETS["smoke"], PRESETS["mini"]):
        for name in (*preset.backbones, *FURTHER):
            b = preset.backbone(name)
            options = size_option(b.name, preset.size) | b.options
            detector = create_detector(b.name, width=b.width, **options)
            detector.cam_layer(preset.size, preset.grid)


@pytest.fixture
def real(toy, tmp_path, lab):
    "Data as they lie on disk for real: a folder a data set."
    write_square(toy, tmp_path / "root/ff++")
    target = toy[toy.subset != "B"].replace(dict(subset=dict(A="celeb")))
    target = target.assign(split="test", dataset="Celeb-DF")
    write_square(target, tmp_path / "root/celeb-df")
    return quiet_lab(tmp_path / "root", tmp_path / "out")


def test_target_sets_of_real_data(real, lab, tmp_path):
    assert real.targets == ["Celeb-DF"] and lab.targets == [] and real.subsets == ["A", "B"]
    run = real.detector("Small", "A")
    assert not run.reused
    assert lab.detector("Small", "A").key == run.key, "the same faces, wherever they lie"
    table, rows = real.scores(run, "Celeb-DF"), real.test_faces("Celeb-DF")
    assert table.path.tolist() == rows.path.tolist() and len(rows) == 24
    assert np.allclose(predict(load_detector(run), FaceDataset(rows)), table.p_fake, atol=1e-6)
    with pytest.raises(ValueError, match="target set 'celeb-df'. Did you mean 'Celeb-DF'"):
        real.scores(run, "celeb-df")
    with pytest.raises(FileNotFoundError, match="no manifest at .*nowhere.*prle forge"):
        data_sets(tmp_path / "nowhere")


def test_target_sets_that_are_absent_are_named(real, tmp_path, lines):
    Lab("tiny", data=tmp_path / "root", outputs=tmp_path / "out")
    [line] = lines
    assert line.endswith("has no manifest of DFDC, DF-1.0: tables and figures go without.")


def test_a_configuration_of_another_lab_is_refused(real):
    with pytest.raises(ValueError, match="is for the preset mini on its own data, the lab is"):
        real.train(RunConfig("xception", "A"))


def test_a_path_may_be_written_in_any_way(lab, monkeypatch):
    here = lab.outputs.parent
    monkeypatch.chdir(here)

    def meant(data):
        "What a lab and a configuration understand."
        of_lab = Lab("tiny", data, lab.outputs).data
        return {of_lab, RunConfig("xception", "A", "tiny", data).data}

    assert lab.data == f"{here}/square/manifest.parquet"
    assert meant("square/manifest.parquet") == {lab.data}
    assert meant(f"{here}/square//manifest.parquet") == {lab.data}
    assert meant("./out/../square/manifest.parquet") == {lab.data}
    assert meant("square/") == meant("square") == {f"{here}/square"}


def test_the_benchmark_is_built_by_one_process_at_a_time(tmp_path, monkeypatch):
    "And each target set; the other looks again when its turn comes."
    log, wait = [], time.sleep

    def build(kind, folder):
        log.append(kind)
        wait(0.1)
        log.append(kind)
        return folder / "manifest.parquet"

    monkeypatch.setattr(
        "prle.lab.labdata.build_benchmark", lambda out, **settings: build("benchmark", out)
    )
    monkeypatch.setattr(
        "prle.lab.labdata.build_targets",
        lambda manifest: {"mini-DF1": build("targets", manifest.parent)},
    )
    monkeypatch.setattr("prle.lab.claims.time.sleep", lambda seconds: wait(0.01))
    threads = [
        threading.Thread(target=lambda: Lab("smoke", outputs=tmp_path).target_sets)
        for _ in range(3)
    ]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert log.count("benchmark") == log.count("targets") == 6
    assert log[::2] == log[1::2], "one begins when another has ended"
    assert not list((tmp_path / "data").iterdir())


def test_a_forged_folder_brings_its_target_sets(toy, tmp_path):
    write_square(toy, tmp_path / "forged")
    write_square(toy.assign(split="test"), tmp_path / "forged/targets/mini-DF1")
    for data in (tmp_path / "forged", tmp_path / "forged/manifest.parquet"):
        assert list(data_sets(data)[1]) == ["mini-DF1"]


def test_attention_of_any_detector_on_any_faces(real):
    run = real.detector("Small", "A", "random")
    maps = np.concatenate([m.numpy() for m in real.heat_maps(run, "Celeb-DF", batch_size=5)])
    detector, rows = load_detector(run), real.test_faces("Celeb-DF")
    image = torch.stack([item["image"] for item in FaceDataset(rows)]) / 255
    by_hand = attention_maps(detector, detector.cam_layer(64, 4), image)
    assert np.allclose(maps, by_hand.numpy(), atol=2e-3)
    assert np.array_equal(next(real.heat_maps(run, "Celeb-DF", rows=[7, 2])).numpy(), maps[[7, 2]])
    assert len(next(real.heat_maps(run))) == len(real.test_faces()) == len(read_scores(run))


def test_masked_faces_are_masked_with_the_zoos_regions(real):
    run, zoo = real.detector("Small", "all"), Zoo("all")
    rows, maps = real.test_faces(), real.quantiles(zoo, "test").path / "quantiles"

    def scores(alpha, **options):
        return read_scores(real.masked(run, zoo, alpha, **options)).p_fake

    def by_hand(mask):
        return predict(load_detector(run), FaceDataset(rows, mask, maps))

    def black(item):
        return item | dict(image=item["image"] * ~region(item["quantiles"], 0.5))

    def gray(item):
        shade = torch.where(region(item["quantiles"], 1.0), 0, 128).to(torch.uint8)
        return item | dict(image=shade.expand(3, -1, -1))

    assert np.array_equal(scores(0), read_scores(run).p_fake), "alpha 0 masks nothing"
    assert np.allclose(by_hand(black), scores(0.5), atol=1e-6)
    assert not np.allclose(scores(0.5), read_scores(run).p_fake, atol=1e-6)
    assert len(scores(0.5, split="Celeb-DF")) == 24
    assert np.allclose(by_hand(gray), scores(1.0, face=False), atol=1e-6)
    assert not np.allclose(scores(1.0, face=False), scores(1.0), atol=1e-6), "another run"
    with pytest.raises(ValueError, match=r"alpha must lie in \[0, 1\], not 1.5"):
        scores(1.5)


def test_what_was_trained_is_not_trained_again_after_a_death(lab, monkeypatch):
    "Killed after the last epoch, or when all was written but the checkpoint's removal."
    whole, calls = lab.detector("Small", "A"), []
    other = quiet_lab(lab.data, lab.outputs.parent / "other")

    def die(*args):
        raise KeyboardInterrupt

    for name in ("Lab._score", "discard"):
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(f"prle.lab.experiments.{name}", die)
            other.detector("Small", "A")
        monkeypatch.setattr("prle.trainer.Trainer.epoch", lambda *a: calls.append(1))
    run = other.detector("Small", "A")
    assert calls == [], "the rest is done, the training is not"
    assert read_scores(run).equals(read_scores(whole))
    assert not list(run.path.glob("checkpoint*"))
    assert read_json(run.path / "provenance.json")["resumed"]


def test_a_training_that_diverges_is_a_gap_with_a_reason(lab):
    "Only the run itself, and what is made from it."
    diverging = dict(lr=1e30, optimizer="SGD")
    name = "detectors/Small-A-none-optimizer=SGD-lr=1e.30-s0"
    with pytest.raises(RunFailed, match=f"{name}-.* failed: .*lower lr") as caught:
        lab.detector("Small", "A", **diverging)
    assert caught.value.run.startswith("detectors/Small-A-none-")
    assert "in epoch 1" in caught.value.reason
    start = time.monotonic()
    with pytest.raises(RunFailed):
        lab.target(lab.detector("Small", "A", **diverging), "Celeb-DF")
    assert time.monotonic() - start < 0.5 and not lab.detector("Small", "A").reused


def test_scores_and_maps_are_computed_in_the_parts_of_a_trainings_batch(lab, monkeypatch):
    "Where they do not fit either, the settings to change are named."
    sizes = []

    def watched(detector, faces, batch_size, *others):
        sizes.append(batch_size)
        return predict(detector, faces, batch_size, *others)

    monkeypatch.setattr("prle.lab.experiments.predict", watched)
    run = lab.detector("Small", "A", batch_size=6, accumulate=3)

    def full(*args, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("prle.lab.experiments.localize", full)
    message = r"on the device for batch_size=2: lower batch_size or raise accumulate .* \(CUDA out of memory"
    with pytest.raises(torch.OutOfMemoryError, match=message):
        lab.attention(run)
    assert sizes == [2]


def test_scores_that_are_no_numbers_are_no_result(lab, monkeypatch):
    def nowhere(detector, faces, *others):
        return np.full(len(faces), np.nan)

    monkeypatch.setattr("prle.lab.experiments.predict", nowhere)
    with pytest.raises(RunFailed, match="the score of .*png is no number"):
        lab.detector("Small", "A")


def test_provenance_names_machine_code_data_and_times(lab):
    run = lab.detector("Small", "A", "primary", zoo=("Other",))
    origin = read_json(run.path / "provenance.json")
    assert config_of(run)["data"] == lab.fingerprint
    named = "commit clean packages device threads start end seconds host modules"
    assert set(named.split()) <= set(origin)
    assert [name.split("/")[0] for name in origin["inputs"]] == ["fusions"]
    assert origin["resumed"] is False


def test_provenance_is_of_the_device_that_was_asked_for(lab, monkeypatch):
    monkeypatch.setattr("prle.lab.store.provenance", lambda device: dict(device=device))
    here = Lab("tiny", lab.data, lab.outputs, "cpu")
    assert read_json(here.detector("Small", "A").path / "provenance.json")["device"] == "cpu"


def test_a_lab_travels_without_its_tables(lab):
    assert len(lab.manifest) and lab.fingerprint
    packed = pickle.dumps(lab)
    again = pickle.loads(packed)
    assert len(packed) < 5000 and "manifest" not in vars(again)
    assert again.fingerprint == lab.fingerprint and again.device == lab.device
    assert again.train_faces("A").path.tolist() == lab.train_faces("A").path.tolist()


def test_a_dry_twin_reads_nothing_again(lab):
    assert lab.fingerprint and lab.dry().manifest is lab.manifest
    assert lab.dry().store.dry and not lab.store.dry


def test_a_wanted_run_is_planned_and_then_read(lab):
    "By the same object: a dry lab notes it, a real one makes it once."
    wanted = Wanted(lambda lab: lab.detector("Small", "A"), read_scores)
    dry = lab.dry()
    assert not wanted.ask(dry).path.exists()
    assert [task.path.parent.name for task in dry.store.tasks] == ["detectors"]
    assert wanted.get(lab).equals(read_scores(lab.detector("Small", "A")))
    assert wanted.ask(lab).reused


def test_a_wanted_run_that_diverged_is_an_error_of_the_one_that_reads(lab):
    def diverging(lab):
        return lab.detector("Small", "A", lr=1e30, optimizer="SGD")

    with pytest.raises(RunFailed):
        Wanted(diverging, read_scores).get(lab)


def test_a_zoo_named_in_any_way_is_one(lab):
    dry = lab.dry()
    same = [
        Zoo("A"),
        Zoo("A", backbones=("Small", "Other")),
        Zoo("A", backbones=("Other", "Small")),
    ]
    assert len({dry.quantiles(zoo).path for zoo in same}) == 1
    assert len({dry.statistics(zoo).path for zoo in same}) == 1
    names = [run.path.name.split("-")[0] for run in dry.maps(same[2])]
    assert names == ["Small", "Other"], "in the preset's order"
    with pytest.raises(ValueError, match="unknown backbone 'Smal'. Did you mean 'Small'"):
        dry.quantiles(Zoo("A", backbones=("Smal",)))


def test_further_detectors_of_a_preset_take_part_only_where_they_are_named(lab, monkeypatch):
    "They have recipes of their own, and do not localize unless they are named."
    further = Backbone("efficientnet_lite0", 1 / 8, recipe=dict(epochs=2))
    before = lab.dry().quantiles(Zoo("A")).key
    preset = dataclasses.replace(TINY, further={"Further": further})
    monkeypatch.setitem(PRESETS, "tiny", preset)
    dry = quiet_lab(lab.data, lab.outputs).dry()
    assert dry.quantiles(Zoo("A")).key == before
    assert dry.localizers(Zoo("A")) == ("Small", "Other")
    assert dry.config("Further", "A").recipe.epochs == 2
    both = Zoo("A", backbones=("Further", "Small"))
    assert dry.localizers(both) == ("Small", "Further")
    assert dry.quantiles(both).key != before


def test_labels_say_what_is_not_as_usual(lab):
    dry = lab.dry()
    masked = dict(mask="primary", fusion=FusionConfig("mean"), zoo=("Other",))
    random = dict(mask="random", p=0.2, lr=0.01, seed=3)
    assert label_of(dry.detector("Small", "A")) == "Small-A-none-s0"
    assert (
        label_of(dry.detector("Small", "A", **masked))
        == "Small-A-primary-mean-Other-layercam-blind-s0"
    )
    assert label_of(dry.detector("Small", "A", **random)) == "Small-A-random-p=0.2-lr=0.01-s3"
    zoo = Zoo("A", 1, ("Other",), FusionConfig("mean"))
    assert label_of(dry.quantiles(zoo, "test")) == "A-mean-Other-test-layercam-blind-s1"
    assert label_of(dry.statistics(Zoo.single("A", 2, "Other"))) == "A-mean,tau=0-Other-s2"


TRUE = CamConfig(explain="true")

KEYS = {  # as they were before trainings had readings
    "f13f2358302072d4": dict(),
    "0919c11fd8d8a182": dict(mask="random"),
    "ff75128b1d30f2c7": dict(mask="primary"),
    "a7bdf078bac2195c": dict(subset="all", mask="landmark", p=0.2),
    "6eec5181506c9c70": dict(
        detector="xception",
        subset="NT",
        width=0.25,
        mask="primary",
        zoo=["VGG"],
        alpha="static",
        recipe=TrainConfig(epochs=3, seed=2),
    ),
}


@pytest.mark.parametrize("key", KEYS)
def test_keys_of_trainings_stay(key):
    config = dict(detector="vgg16", subset="DF") | KEYS[key]
    assert digest(RunConfig(**config).key()) == key
    other = RunConfig(**config, cam=TRUE, blind=True, zoo_seed=9, zoo_subset="NT")
    assert digest(other.key()) == key, (
        "readings are those of the quantile maps, in whose key they are"
    )


RUNS = """
detectors/Xception-DF-none-s0-77382e461a8c5a74
maps/Xception-DF-none-s0-train-29ba6bd4dd9b952e
detectors/EfficientNet-DF-none-s0-389f3cb75fb2ee16
maps/EfficientNet-DF-none-s0-train-feb69626c598fb29
detectors/VGG-DF-none-s0-4c7b0791356af3cf
maps/VGG-DF-none-s0-train-514051796eb1579a
fusions/DF-neighbour-s0-2cc5a00a7ffe089d
detectors/VGG-DF-primary-published-s0-f44208acd978aea0
statistics/DF-neighbour-s0-c2aff36cd24a58be
"""


def dry_smoke(outputs):
    "A dry lab of the preset smoke, for which nothing is forged."
    lab = Lab("smoke", outputs=outputs)
    faces = pd.DataFrame(dict(subset=["real", "DF", "NT"], label=[0, 1, 1], target=""))
    lab.manifest = pd.concat([faces.assign(split=split) for split in ("train", "val", "test")])
    lab.fingerprint = "that of a manifest made by hand"
    return lab.dry()


def test_names_of_runs_stay(tmp_path):
    dry = dry_smoke(tmp_path)
    dry.detector("VGG", "DF", mask="primary", **PUBLISHED)
    dry.statistics(Zoo("DF", **PUBLISHED))
    assert [task.name for task in dry.store.tasks] == RUNS.split()


def test_the_tutorial_of_clusters_shows_the_plan_that_is_made(tmp_path):
    "But for digests, which hold the forged faces."
    path = Path(__file__).parents[1] / "nbs/tutorials/cluster.ipynb"
    cells = {cell.id: cell for cell in nbformat.read(path, as_version=4).cells}
    call = 'dry.detector("VGG", "DF", mask="primary", epochs=2)'
    assert call in cells["cluster-3"].source
    dry = dry_smoke(tmp_path)
    eval(call)

    def labels(text):
        return re.findall(r"(\w+/\S+)-[0-9a-f]{6}\b", text)

    (output,) = cells["cluster-3"].outputs
    planned_now = plan_text(planned(dry.store))
    assert labels(output.text) == labels(planned_now) and len(dry.store.tasks) > 5
    assert output.text.splitlines()[-1] == planned_now.splitlines()[-1]
    assert f"{len(dry.store.tasks)} made." in cells["cluster-6"].outputs[0].text


def test_readings_have_keys_and_labels_of_their_own(lab):
    dry = lab.dry()
    zoos = [
        Zoo("A"),
        Zoo("A", **PUBLISHED),
        Zoo("A", **PUBLISHED | dict(cam=CamConfig(explain="predicted"))),
        Zoo("A", **PUBLISHED | dict(cam=TRUE)),
        Zoo("A", **PUBLISHED | dict(cam=CamConfig("layercam"))),
        Zoo("A", **PUBLISHED | dict(cam=CamConfig(grid=5))),
        Zoo("A", **PUBLISHED | dict(blind=True)),
        Zoo("A", trained="B"),
        Zoo("A", 1),
    ]
    assert len({dry.quantiles(zoo).key for zoo in zoos}) == len(zoos)
    assert dry.quantiles(Zoo("A", trained="A")).path == dry.quantiles(Zoo("A")).path
    zoo = Zoo("A", cam=TRUE, trained="B", fusion=FusionConfig())
    assert label_of(dry.quantiles(zoo)) == "A-neighbour-zoo=B-true-blind-s0"
    assert [label_of(run) for run in dry.maps(zoo)] == [
        "Small-B-none-s0-train-true",
        "Other-B-none-s0-train-true",
    ]
    readings = dict(
        cam=dict(explain="predicted"), fusion=FusionConfig(), zoo_seed=4, zoo_subset="B", blind=True
    )
    run = dry.detector("Small", "A", "primary", **readings)
    assert label_of(run) == "Small-A-primary-neighbour-zoo=B-predicted-blind-zoo=s4-s0"
    usual = dry.detector("Small", "A", "primary")
    assert run.key != usual.key
    own = dict(zoo_seed=0, zoo_subset="A", **READING)
    assert dry.detector("Small", "A", "primary", **own).path == usual.path


def test_equal_keys_have_equal_labels(lab):
    "Whatever does nothing, and in whatever order it is written."
    dry, fusion = lab.dry(), READING["fusion"]
    same = [dict(fusion=dataclasses.replace(fusion, drop=drop)) for drop in (0.1, 0.2)]
    assert len({dry.detector("Small", "A", "primary", **s).path for s in same}) == 1
    assert FusionConfig("released", drop=0.1).drop == 0.1
    options = [dict(momentum=0.2, dropout=0.1), dict(dropout=0.1, momentum=0.2)]
    assert len({dry.detector("meso4", "A", options=o).path for o in options}) == 1


def test_a_wrong_word_stops_before_the_benchmark_is_forged(tmp_path, monkeypatch):
    monkeypatch.setattr(labdata, "BUILDERS", {})
    lab = Lab("smoke", outputs=tmp_path)
    with pytest.raises(ValueError, match="unknown backbone 'Xeption'. Did you mean 'Xception'"):
        lab.config("Xeption", "DF")
    with pytest.raises(ValueError, match="unknown parameter 'alfa'. Did you mean 'alpha'"):
        lab.config("Xception", "DF", alfa=1)
    assert not list(tmp_path.iterdir())


def test_a_configuration_belongs_to_whoever_asked_for_it(lab):
    usual = lab.config("Small", "A", options=dict(dropout=0.1))
    usual.options["dropout"] = 0.9
    assert lab.config("Small", "A", options=dict(dropout=0.1)).options == dict(dropout=0.1)
    assert lab.config("Small", "A").options == {}


def test_matched_masks_are_of_the_zoo_that_they_are_compared_with(lab):
    dry = lab.dry()
    primary = dry.detector("Small", "A", "primary", **PUBLISHED)
    asked = len(dry.store.tasks)
    for mask in ("random-matched", "landmark-matched"):
        run = dry.detector("Small", "A", mask, **PUBLISHED)
        assert label_of(run) == f"Small-A-{mask}-published-s0" and run.key != primary.key
    assert len(dry.store.tasks) == asked + 2, "no maps besides"
    parts = dict(parts=["nose", "mouth"])
    assert label_of(dry.detector("Small", "A", "landmark", **parts)).endswith(
        "-parts=nose+mouth-s0"
    )
    assert (
        dry.detector("Small", "A", "random", **parts).key
        == dry.detector("Small", "A", "random").key
    )
    with pytest.raises(ValueError, match="unknown part of the face 'moth'"):
        lab.config("Small", "A", mask="landmark", parts=["moth"])


def test_what_is_no_reading_stops_at_once(lab):
    with pytest.raises(ValueError, match="unknown reading 'fakes'.*Did you mean 'fake'"):
        lab.config("Small", "A", cam=dict(explain="fakes"))
    with pytest.raises(ValueError, match="zoo_seed must be a whole number from 0"):
        lab.config("Small", "A", zoo_seed=-1)
    with pytest.raises(ValueError, match="unknown manipulation 'C'"):
        lab.detector("Small", "A", "primary", zoo_subset="C")
    with pytest.raises(ValueError, match="unknown reading 'real'"):
        CamConfig(explain="real")
    assert lab.store.names() == []


def test_a_training_takes_the_zoo_that_it_names(lab):
    "Detectors of another manipulation and seed localize on its own faces, in its own reading."
    readings = dict(cam=TRUE, zoo_seed=1, zoo_subset="B", zoo=("Small",))
    run = lab.detector("Small", "A", "primary", **readings)
    lab.detector("Small", "A", "landmark-matched", **readings)
    (plain,) = [lab.detector("Small", "B", seed=1)]
    (maps,) = lab.maps(Zoo("A", 1, ("Small",), cam=TRUE, trained="B"))
    assert plain.reused and maps.reused and config_of(maps)["detector"] == plain.key
    assert len(np.load(maps.path / "maps.npy")) == len(lab.train_faces("A"))
    again = RunConfig.read(run.path / "run.yaml")
    assert (again.cam, again.zoo_seed, again.zoo_subset) == (TRUE, 1, "B")


def test_maps_of_a_lab_in_every_reading(lab):
    run, faces = lab.detector("Small", "A"), FaceDataset(lab.test_faces())
    detector = load_detector(run)
    images = torch.stack([item["image"] for item in faces]) / 255
    labels = torch.tensor([item["label"] for item in faces])
    for explain, reading in EXPLAINED.items():
        stored = np.load(lab.attention(run, cam=CamConfig(explain=explain)).path / "maps.npy")
        expected = attention_maps(
            detector,
            detector.cam_layer(64, 4),
            images,
            lambda out, reading=reading: reading(out, labels),
            "grid",
        )
        assert np.allclose(stored, expected.numpy(), atol=2e-3)
    assert "explain" not in config_of(lab.attention(run))


@pytest.fixture
def paired(toy, tmp_path, monkeypatch):
    "A lab whose manifest says which real each fake was made of; fakes have landmarks of their real."
    monkeypatch.setitem(PRESETS, "tiny", TINY)
    manifest = read_manifest(write_square(toy, tmp_path / "square"))
    target = manifest.video.where(manifest.label == 1, "")
    points = manifest[manifest.label == 0].set_index("video").landmarks
    manifest = manifest.assign(target=target, landmarks=manifest.video.map(points))
    path = write_manifest(manifest, tmp_path / "square/manifest.parquet")
    return quiet_lab(path, tmp_path / "out")


def blind_maps(lab, zoo, rows):
    folder = lab.quantiles(zoo).path / "quantiles"
    files = [(folder / path).with_suffix(".png") for path in rows.path]
    return [file.read_bytes() for file in files], [read_quantiles(file) for file in files]


def test_a_fake_and_its_real_have_one_map_in_a_blind_zoo(paired):
    zoo, rows = Zoo("A", backbones=("Small",), **PUBLISHED), paired.train_faces("A")
    blind = dataclasses.replace(zoo, blind=True)
    (own, _), (shared, _) = blind_maps(paired, zoo, rows), blind_maps(paired, blind, rows)
    for path, label, video, before, after in zip(rows.path, rows.label, rows.video, own, shared):
        fake = rows.path.tolist().index(f"A/{video}.png")
        assert after == shared[fake] == own[fake], path
        if label == 0:
            assert before != after, "the real's own map is another"
    fused = torch.cat(list(paired.fused_maps(blind)))
    for i, video in enumerate(rows.video):
        assert fused[i].equal(fused[rows.path.tolist().index(f"A/{video}.png")])
    shares = pd.read_parquet(paired.statistics(blind).path / "shares.parquet")
    by_label = [shares[shares.label == label]["above 0"].tolist() for label in (0, 1)]
    assert by_label[0] == by_label[1]


def test_a_decisive_zoo_keeps_as_much_as_decides(paired):
    whole = Zoo("A", backbones=("Small",), fusion=FusionConfig("mean", tau=0.0), blind=True)
    zoo, rows = dataclasses.replace(whole, decisive=2.0), paired.train_faces("A")
    sizes = np.load(paired.sizes(zoo).path / "sizes.npy")
    assert paired.sizes(whole).reused, "one run for all margins"
    assert (sizes[rows.label == 0] == 0).all() and 0 <= sizes.min() and sizes.max() <= 0.5
    run, pixels = paired.quantiles(zoo), 64 * 64
    attended = torch.cat(list(paired.fused_maps(zoo)))
    for i, (path, video) in enumerate(zip(rows.path, rows.video)):
        fake = rows.path.tolist().index(f"A/{video}.png")
        masked = read_quantiles((run.path / "quantiles" / path).with_suffix(".png")) > 0
        largest = round(min(2 * sizes[fake], 1) * pixels)
        assert masked.sum() <= largest and (attended[i].numpy() > 0).sum() == masked.sum()
    assert paired.quantiles(whole).key != run.key
    with pytest.raises(ValueError, match="needs blind"):
        paired.config("Small", "A", mask="primary", blind=False, decisive=2.0)


def test_test_faces_are_masked_as_the_zoo_says(paired):
    run = paired.detector("Small", "A")
    zoo = Zoo("A", backbones=("Small",), **PUBLISHED)
    blind = dataclasses.replace(zoo, blind=True)
    own, shared = (paired.masked(run, z, 0.5) for z in (zoo, blind))
    assert own.key != shared.key
    own, shared = (read_scores(r).set_index("path").p_fake for r in (own, shared))
    fakes = own.index[~own.index.str.startswith("real/")]
    assert np.allclose(own[fakes], shared[fakes]) and not np.allclose(own, shared)


def test_without_a_pair_a_real_has_the_moved_map_of_another_persons_fake(paired, lines):
    "The real of p0 has lost its fake; its landmarks are those of a fake of p1, moved by 6 and 2 px."
    manifest = paired.manifest
    lost, model = "real/0_0.png", "A/1_0.png"
    points = manifest.set_index("path").landmarks
    moved = points[model].reshape(68, 2) + np.float32([6, 2])
    rows = manifest[manifest.path != "A/0_0.png"].reset_index(drop=True)
    rows["landmarks"] = [
        moved.ravel() if p == lost else q for p, q in zip(rows.path, rows.landmarks)
    ]
    path = write_manifest(rows, f"{manifest.attrs['root']}/manifest.parquet")
    lab = quiet_lab(path, paired.outputs)
    faces = lab.train_faces("A")
    zoo = Zoo("A", backbones=("Small",), fusion=FusionConfig("mean"), blind=True)
    fused = torch.cat(list(lab.fused_maps(zoo)))
    at = {path: i for i, path in enumerate(faces.path)}
    there, here = fused[at[model]], fused[at[lost]]
    assert there.any() and torch.equal(here[2:, 6:], there[:-2, :-6])
    assert not here[:2].any() and not here[:, :6].any()
    assert "NOTE 1 of 6 real faces have no fake of the same frame." in lines


def test_a_recipe_changes_training_masks_and_nothing_else(toy, tmp_path):
    data = write_square(toy, tmp_path / "square")
    labs = {
        name: Lab(name, data=data, outputs=tmp_path / "out") for name in PRESETS if "smoke" in name
    }
    ours, paper, release = (labs[name] for name in ("smoke", "smoke+paper", "smoke+release"))
    plain = ours.config("Xception", "all").recipe
    assert plain.balance and plain.ema and plain.flip and plain.schedule == "cosine"
    for lab, batch in ((paper, 64), (release, 32)):
        assert lab.base == "smoke" and lab.preset.size == ours.preset.size
        for name in ("Xception", "VGG", "meso4"):  # of the zoo or not
            recipe = lab.config(name, "all").recipe
            assert (recipe.batch_size, recipe.lr, recipe.epochs) == (batch, 2e-4, 10)
            assert not (recipe.balance or recipe.ema or recipe.flip)
            assert recipe.schedule == "constant"
    masked = release.config("VGG", "A", mask="primary")
    assert (masked.range, masked.fill) == ((0.5, 1.0), "noise")
    assert release.config("VGG", "A", mask="primary", alpha="static").range == (1.0, 1.0)
    assert paper.config("VGG", "A", mask="primary").range == (0.0, 1.0)
    assert release.label(masked) == "VGG-A-primary-recipe=release-s0"
    assert ours.label(ours.config("VGG", "A")) == "VGG-A-none-s0"


def test_an_augmentation_is_in_key_and_label_where_there_is_one(lab):
    plain, cut = lab.config("Small", "A"), lab.config("Small", "A", augment="cutout")
    assert "augment" not in plain.key()["recipe"] and cut.key()["recipe"]["augment"] == "cutout"
    assert lab.label(cut) == "Small-A-none-augment=cutout-s0"
    with pytest.raises(ValueError, match="unknown augmentation 'cutuot'.*'cutout'"):
        lab.config("Small", "A", augment="cutuot")
    with pytest.raises(ValueError, match="RECCE cannot be trained with mixup"):
        lab.dry().detector("recce", "A", augment="mixup")


# Seeds that draw their people


def _path_sets(lab, seed):
    sets = [
        lab.train_faces("A", seed=seed),
        lab.train_faces("A", "val", seed),
        lab.test_faces(seed=seed),
    ]
    return [set(rows.identity) for rows in sets]


@pytest.fixture
def grouped(lab):
    "The toy faces with a group for each split, so that there are three folds."
    faces = lab.manifest.assign(group=lab.manifest.split.map(dict(test=0, val=1, train=2)))
    root = lab.manifest.attrs["root"]
    return quiet_lab(write_manifest(faces, f"{root}/grouped.parquet", root), lab.outputs)


def test_each_seed_has_its_own_people(grouped):
    (train, val, test), others = _path_sets(grouped, 0), _path_sets(grouped, 1)
    assert others == [test, train, val] and _path_sets(grouped, 3) == [train, val, test]
    assert [grouped.fold(seed) for seed in range(4)] == [0, 1, 2, 0]
    for seed in (0, 1):
        run = grouped.detector("Small", "A", seed=seed)
        assert set(read_scores(run).identity) == _path_sets(grouped, seed)[2]
        rows = grouped.faces("train", "A", seed)
        (maps,) = grouped.maps(Zoo("A", seed, ("Small",)))
        assert len(np.load(maps.path / "maps.npy")) == len(rows)
        quantiles = grouped.quantiles(Zoo("A", seed, ("Small",))).path / "quantiles"
        assert all((quantiles / path).with_suffix(".png").exists() for path in rows.path)
    plain = quiet_lab(f"{grouped.manifest.attrs['root']}/manifest.parquet", grouped.outputs)
    assert plain.fingerprint != grouped.fingerprint and plain.fold(1) == 0


def test_a_zoo_of_another_seed_localizes_on_the_students_faces(grouped):
    reading = dict(zoo_seed=3, zoo=("Small",), **PUBLISHED)
    run = grouped.detector("Small", "A", "primary", seed=1, **reading)
    zoo = RunConfig.read(run.path / "run.yaml").masking_zoo
    assert zoo == Zoo("A", 3, ("Small",), student=1, **PUBLISHED)
    made = grouped.quantiles(zoo)
    assert made.reused and label_of(made) == "A-neighbour-Small-fold=1-s3"
    rows = grouped.faces("train", "A", 1)
    (maps,) = grouped.maps(zoo)
    assert maps.reused and len(np.load(maps.path / "maps.npy")) == len(rows)
    assert all((made.path / "quantiles" / p).with_suffix(".png").exists() for p in rows.path)
    assert len(list((made.path / "quantiles").rglob("*.png"))) == len(rows)
    dry = grouped.dry()
    same = dry.quantiles(dataclasses.replace(zoo, student=4))
    other = dry.quantiles(dataclasses.replace(zoo, student=0))
    assert same.key == made.key != other.key
    assert dry.quantiles(Zoo("A", 3, ("Small",), **PUBLISHED)).key == other.key
    statistics = grouped.statistics(zoo)
    shares = pd.read_parquet(statistics.path / "shares.parquet")
    assert shares.path.tolist() == rows.path.tolist()


def test_masked_faces_are_of_the_people_of_the_detector(grouped):
    plain = grouped.detector("Small", "A", seed=1)
    masked = grouped.masked(plain, Zoo("A", 1, ("Small",), **PUBLISHED), 0.5)
    assert read_scores(masked).path.tolist() == read_scores(plain).path.tolist()
    with pytest.raises(ValueError, match="localizes on other people"):
        grouped.masked(plain, Zoo("A", 0, ("Small",), **PUBLISHED), 0.5)


def test_a_zoo_that_was_trained_on_the_test_people_is_told(grouped, lines):
    asked = dict(mask="primary", zoo=("Small",), **PUBLISHED)
    grouped.detector("Small", "A", **asked, zoo_seed=3)  # the same people as seed 0
    assert not any("tested on" in line for line in lines)
    grouped.detector("Small", "A", **asked, zoo_seed=1)
    (said,) = [line for line in lines if "tested on" in line]
    assert re.search(r"zoo of seed 1 is trained on \d people whom seed 0 is tested on", said)


def test_a_grid_that_is_the_presets_is_the_usual_one(lab):
    "Maps have one name then, and a plan puts them before what they are made into."
    dry = lab.dry()
    for cam in (CamConfig(grid=TINY.grid), CamConfig()):
        dry.detector("Small", "A", mask="primary", cam=cam, fusion=FusionConfig(), blind=False)
    names = [task.name for task in dry.store.tasks]
    assert len({task.run.key for task in dry.store.tasks}) == len(names)
    assert not any("grid=" in name for name in names)
    inputs = task_inputs(dry.store.tasks)
    assert all(names.index(one) < i for i, name in enumerate(names) for one in inputs[name])


def test_maps_of_pairs_are_named_by_the_pairs_of_their_own_faces(paired):
    zoo = Zoo("A", backbones=("Small",))
    before = [paired.dry().quantiles(zoo, split).key for split in ("train", "test")]
    faces = paired.manifest
    moved = faces.target.where((faces.split != "test") | (faces.target == ""), "elsewhere")
    path = write_manifest(faces.assign(target=moved), f"{faces.attrs['root']}/moved.parquet")
    other = quiet_lab(path, paired.outputs)
    after = [other.dry().quantiles(zoo, split).key for split in ("train", "test")]
    assert after[0] == before[0] and after[1] != before[1]


def test_a_lab_in_another_process_has_a_store(lab):
    made = lab.detector("Small", "A")
    there = pickle.loads(pickle.dumps(lab))
    assert there.detector("Small", "A").reused and there.store.root == lab.store.root
    assert made.key == there.detector("Small", "A").key


def test_the_student_joins_the_zoo_and_later_epochs_have_other_maps(paired, monkeypatch):
    seen, asked = [], dict(mask="primary", zoo=("Other",), zoo_seed=5, renew=2)
    epoch = Trainer.epoch

    def noted(self, number, bar):
        faces = self.inputs.faces
        if faces.quantiles:  # the student's
            maps = faces[0]["quantiles"].numpy().tobytes()
            seen.append((number, maps, Path(faces.quantiles).parent))
        return epoch(self, number, bar)

    monkeypatch.setattr(Trainer, "epoch", noted)
    config = paired.config("Small", "A", epochs=5, **asked)
    run = paired.train(config)
    maps = [maps for _, maps, _ in seen]
    assert maps[0] == maps[1] != maps[2] == maps[3] != maps[4]
    assert [folder.name for *_, folder in seen[-3:]] == ["renewed-2", "renewed-2", "renewed-4"]
    assert not list(run.path.glob("renewed-*")), "kept no longer than needed"
    usual = paired.config("Small", "A", epochs=5, **asked | dict(renew=0))
    assert "renew" not in usual.key() and config.key()["renew"] == 2


def test_an_interrupted_training_goes_on_with_renewed_maps(paired, monkeypatch):
    asked = dict(mask="primary", zoo=("Other",), zoo_seed=5, renew=1, epochs=4)
    straight = paired.detector("Small", "A", **asked)
    weights = (straight.path / "model.safetensors").read_bytes()
    again = quiet_lab(paired.data, paired.outputs.parent / "again")
    save, calls = Trainer.save, []

    def killed(self, folder):
        save(self, folder)
        calls.append(folder)
        if len(calls) == 2 and "primary" in str(folder):
            raise KeyboardInterrupt

    again.detector("Other", "A", seed=5)
    monkeypatch.setattr(Trainer, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        again.detector("Small", "A", **asked)
    monkeypatch.setattr(Trainer, "save", save)
    run = again.detector("Small", "A", **asked)
    assert (run.path / "model.safetensors").read_bytes() == weights


@pytest.mark.parametrize("split", ["train", "val"])
def test_nothing_is_scored_that_was_trained_or_chosen_on(lab, split):
    run = lab.detector("Small", "A")
    for score in (lab.scores, lab.target):
        with pytest.raises(ValueError, match=f"unknown test or target set '{split}'"):
            score(run, split)
    with pytest.raises(ValueError, match="test or target set"):
        lab.test_faces(split)


def test_a_benchmark_of_ones_own_is_not_replaced(tmp_path, monkeypatch):
    "The preset's own is made where nothing is, and none takes the place of another's."
    lab = Lab("smoke", outputs=tmp_path)
    folder = tmp_path / "data/smoke"
    folder.mkdir(parents=True)
    made = dict(photographs="mine", size=64, marked=True)
    write_json(folder / "forge.json", dict(config=made, digest=digest(made), pictures=0))
    mark_folder(folder, "benchmark")
    with pytest.raises(FileExistsError, match="other settings .*photographs was.*--data"):
        lab.dry()
    assert {path.name for path in folder.iterdir()} >= {"forge.json"}


def test_data_have_one_hash_however_a_notebook_prints(lab):
    lab.manifest.at[0, "transform"] = np.linspace(0, 1, 6) / 3
    found = set()
    for options in (dict(), dict(precision=3), dict(linewidth=20), dict(suppress=True)):
        with np.printoptions(**options):
            found.add(data_fingerprint(lab.manifest))
    assert len(found) == 1
