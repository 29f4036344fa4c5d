"""prle.lab.apply and the commands for runs: plan, runs, train, evaluate, localize, predict."""

import json
import re
import shutil
from functools import partial

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from pillow_heif import register_heif_opener
import yaml
from clips import background, photograph, write_frames

from prle import cli
from prle.paper import exhibits
from prle.paper import reproduce
from prle.lab.apply import crop_detected, crop_settings, evaluation, reopen
from prle.mini.benchmark import LIFT, SCALE, SOFT, build_benchmark
from prle.core import write_json
from prle.data.crops import read_rgb
from prle.data.manifest import read_manifest, write_manifest
from prle.lab.configs import IDENTITY, PRESETS, PUBLISHED, READING, CamConfig, RunConfig, Zoo
from prle.paper.exhibits import Exhibit
from prle.lab.experiments import Lab, Wanted, load_detector, read_scores
from prle.data.faces import find_largest, orl_folder
from prle.data.pictures import read_image
from prle.metrics import auc
from prle.lab.administration import list_runs, recorded_runs
from prle.trainer import to_input
from prle.trust import read_sealed, write_sealed
from test_experiments import TINY, quiet_lab, write_square


def needing(ask, name="table"):
    "A table that needs a run of each seed."

    class Table(Exhibit):
        notebook = name

        def cells(self, lab, seeds):
            return dict(cell=[Wanted(partial(ask, seed=seed), str) for seed in range(seeds)])

    return Table()


@pytest.fixture
def lab(toy, tmp_path, monkeypatch):
    "A lab on the toy faces, and two tables that need runs of it."
    monkeypatch.setitem(PRESETS, "tiny", TINY)
    declared = dict(
        table_a=needing(lambda lab, seed: lab.detector("Small", "A", "primary", seed), "table_a"),
        table_b=needing(lambda lab, seed: lab.statistics(Zoo("B", fusion=IDENTITY)), "table_b"),
    )
    monkeypatch.setattr(exhibits, "PAPER", declared)
    monkeypatch.setattr(reproduce, "list_notebooks", lambda: list(declared))
    return quiet_lab(write_square(toy, tmp_path / "square"), tmp_path / "out")


@pytest.fixture
def prle(lab, capsys):
    "The command on that lab's data: words -> (exit code, what it printed, what it complained)."

    def run(*words, given=True):
        options = ["--outputs", str(lab.outputs)]
        if given and words[0] in ("plan", "train"):
            options += ["--preset", "tiny", "--data", lab.data]
        capsys.readouterr()
        code = cli.main([*map(str, words), *options])
        return (code, *capsys.readouterr())

    return run


def test_plan_tells_what_is_there_and_why_not(lab, prle):
    code, text, _ = prle("plan", "table_a")
    assert code == 0 and "6 to make, 6 of them like none before." in text and "masks" not in text
    table = needing(lambda lab, seed: lab.detector("Small", "A"))
    announced = reproduce.announce(lab, table, seeds=1)
    assert announced == "1 of 1 runs are to be made: 1 of them like none before."
    lab.detector("Small", "A", seed=0)
    _, text, _ = prle("plan", "table_a", "table_b")
    assert re.search("reuse +detectors/Small-A-none-s0", text)
    assert "11 runs: 1 reused, 10 to make in about" in text
    assert prle("plan", "table_c")[0] == 2 and not list((lab.outputs / "runs").glob("maps*"))


def test_changed_data_are_said_to_have_changed(lab, prle):
    lab.detector("Small", "A")
    with open(f"{lab.manifest.attrs['root']}/{lab.manifest.path[0]}", "ab") as f:
        f.write(b"x")
    assert "the data have changed" in prle("plan", "table_a")[1]


def test_runs_are_listed_and_what_nothing_needs_goes(lab, prle):
    reproduce.prepare(lab, ["table_a"])
    lost = lab.detector("Other", "B", "random", lr=0.01)
    assert len(recorded_runs(lab.outputs)) == 6
    _, text, _ = prle("runs", "--kind", "detectors", "--match", "random")
    assert "detectors/Other-B-random-lr=0.01-s0-" in text and "1 runs (1 finished)" in text
    assert text.endswith("made by other code.\n")
    origin = read_sealed(lost.path / "provenance.json")
    other = dict(code="?", modules=dict(lab.store.modules, trainer="?"))
    write_sealed(lost.path / "provenance.json", origin | other)
    assert "other code: trainer differs" in prle("runs", "--code", "stale")[1]
    assert "Other-B-random" not in prle("runs", "--code", "current")[1]
    _, text, _ = prle("runs", "prune")
    assert "1 runs (1 finished)" in text and "Nothing was deleted" in text and lost.path.exists()
    (lab.outputs / "runs/detectors/thesis").mkdir()
    _, text, _ = prle("runs", "prune", "--delete")
    assert "Deleted 1 runs." in text and not lost.path.exists()
    assert re.search("Left alone.*detectors/thesis +alien.*not named like a run", text, re.DOTALL)
    assert "Deleted 0 runs." in prle("runs", "prune", "--delete")[1]
    (lab.outputs / "runs/detectors/thesis").rmdir()
    assert list_runs(lab.outputs / "runs").state.tolist() == ["finished"] * 6
    _, _, text = prle("runs", "--kind", "detector")
    assert "unknown kind of run 'detector'. Did you mean 'detectors'" in text


def test_only_what_was_chosen_is_deleted(lab, prle):
    "Of what nothing needs: by kind, label and code, as the list shows them."
    store = lab.store
    kept = [
        store.get(kind, label, dict(n=0), lambda folder: (folder / "a").touch()).path
        for kind, label in (("maps", "a"), ("maps", "b"), ("areas", "a"))
    ]
    origin = read_sealed(kept[1] / "provenance.json")
    other = dict(code="?", modules=dict(store.modules, trainer="?"))
    write_sealed(kept[1] / "provenance.json", origin | other)
    for words, gone in (
        (["--kind", "maps", "--match", "^c"], None),
        (["--kind", "maps", "--code", "stale"], kept[1]),
        (["--match", "^a", "--kind", "areas"], kept[2]),
        ([], kept[0]),
    ):
        _, text, _ = prle("runs", "prune", *words)
        assert f"{int(gone is not None)} runs" in text and all(path.exists() for path in kept)
        code, text, _ = prle("runs", "prune", *words, "--delete")
        kept = [path for path in kept if path != gone]
        assert code == 0 and all(path.exists() for path in kept) and not (gone and gone.exists())
        more = f"Nothing needs {len(kept)} more; these were not chosen, and stay."
        assert (more in text) == bool(kept)
    assert prle("runs", "prune", "--kind", "masp")[0] == 2


def test_a_byte_that_changed_is_found_when_all_are_compared(lab, prle):
    run = lab.detector("Small", "A")
    assert prle("runs", "check")[0] == 0
    bytes_ = bytearray((run.path / "model.safetensors").read_bytes())
    bytes_[-1] ^= 1
    (run.path / "model.safetensors").write_bytes(bytes_)
    code, text, _ = prle("runs", "check")
    assert code == 1 and "corrupt" in text
    assert "model.safetensors has changed since it was written" in text
    assert prle("runs")[0] == 0


def test_a_flipped_bit_in_any_file_is_refused_by_name(lab, prle):
    "Whatever is asked of the run."
    run = lab.detector("Small", "A")
    commands = (["evaluate", "Small-A"], ["localize", "Small-A"], ["predict", "Small-A", "a.png"])
    for path in sorted(run.path.iterdir()):
        whole = path.read_bytes()
        for at in (0, len(whole) // 3, len(whole) // 2, len(whole) - 2):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            for command in commands:
                code, _, text = prle(*command)
                assert code == 2 and path.name in text and len(text) < 800, (at, command, text)
        path.write_bytes(whole)
    assert prle("evaluate", "Small-A")[0] == 0


def test_train_evaluate_localize(lab, prle, tmp_path):
    words = "Small A --mask primary --set alpha=static lr=1e-3 zoo=[Other] --seed 3"
    code, text, _ = prle("train", *words.split())
    assert code == 0 and text.split()[:3] == ["subset", "unit", "measure"]
    label = "Small-A-primary-Other-alpha=1..1-lr=0.001-s3"
    [run] = (lab.outputs / "runs/detectors").glob(f"{label}-*")
    config = RunConfig.read(run / "run.yaml")
    changes = dict(mask="primary", alpha="static", lr=1e-3, zoo=("Other",))
    assert config == lab.config("Small", "A", 3, **changes) and config.recipe.lr == 0.001
    config.write(tmp_path / "again.json")
    assert prle("train", tmp_path / "again.json", given=False) == (0, text, f"trained: {run}\n")
    _, pruned, _ = prle("runs", "prune")
    assert "Nothing was deleted" in pruned, "what is trained by hand is kept"
    assert "0 runs (none)" in pruned
    code, table, _ = prle("evaluate", "Small-A-primary")
    assert code == 0 and table.strip() in text
    words = "detectors/Small-A-primary --split train --subset A"
    code, where, _ = prle("localize", *words.split())
    assert len(np.load(where.strip())) == len(lab.train_faces("A"))
    assert prle("evaluate", "small-A")[0] == 2 and prle("evaluate", run, "--on", "mini-DF1")[0] == 2
    maps = next((lab.outputs / "runs/maps").iterdir())
    assert "there is no run.yaml" in prle("evaluate", maps)[2]


def test_readings_on_the_command_line(lab, prle, tmp_path):
    words = "Small A --mask primary --explain true --zoo-seed 0 --zoo-subset B --set zoo=[Other]"
    assert prle("train", *words.split(), "--seed", 2)[0] == 0
    label = "Small-A-primary-mean,tau=0,share=0.2-Other-zoo=B-layercam,true-blind-zoo=s0-s2"
    [run] = (lab.outputs / "runs/detectors").glob(f"{label}-*")
    config = RunConfig.read(run / "run.yaml")
    cam = CamConfig("layercam", explain="true")
    assert config.masking_zoo == Zoo("A", 0, ("Other",), cam=cam, trained="B", student=2)
    for options, wanted in (({}, READING), (dict(published=True), PUBLISHED)):
        assert cli._reading(options) == wanted
    as_published = cli._reading(dict(published=True, explain="true"))
    assert as_published == PUBLISHED | dict(cam=CamConfig(explain="true"))
    code, where, _ = prle("localize", "Small-A-primary", "--explain", "predicted")
    assert code == 0 and "-test-predicted-" in where
    assert "Did you mean 'true'" in prle("localize", "Small-A-primary", "--explain", "ture")[2]
    config.write(tmp_path / "again.yaml")
    beside = prle("train", tmp_path / "again.yaml", "--published", "--zoo-subset", "A", given=False)
    assert beside[0] == 2 and "write there what --published, --zoo-subset would say" in beside[2]


@pytest.mark.parametrize(
    "words, message",
    [
        (["--published", "--zoo-seed", "0"], "published, zoo_seed: nothing of a training"),
        (["--set", "zoo=[Other]", "p=0.3"], "zoo, p: nothing of a training with --mask none"),
        (["--mask", "random", "--cam", "gradcam"], "cam: nothing of a training with --mask random"),
    ],
)
def test_what_says_nothing_about_the_masks_of_a_training_is_refused(lab, prle, words, message):
    code, _, text = prle("train", "Small", "A", *words)
    assert code == 2 and message in text and not (lab.outputs / "runs").exists()


def test_where_there_are_no_runs_the_folder_is_named(lab, prle):
    for words in (["evaluate", "Small-A"], ["predict", "Small-A", "x.png"]):
        code, _, text = prle(*words)
        assert code == 2 and f"there are no runs in {lab.outputs / 'runs'}" in text
    assert prle("runs", "--kind", "maps")[0] == 0


@pytest.mark.parametrize(
    "words, message",
    [
        (["Small", "A", "--set", "lr=[" + "[" * 10**5], "--set lr is neither"),
        (["Small", "A", "--set", "options={a: &a {}, b: *a}"], "has an alias"),
        (["Small"], "a configuration"),
        (["Small", "A", "--set", "lr"], "--set takes NAME=VALUE, not 'lr'"),
        (["Small", "A", "--set", "epoch=3"], "Did you mean 'epochs'"),
        (["Small", "A", "--mask", "primry"], "Did you mean 'primary'"),
        (["Small", "C"], "unknown manipulation 'C'"),
        (["nothing.yaml"], "No such file"),
        (
            ["Small", "A", "--mask", "primary", "--set", "options={dropuot: 1}"],
            "has no option 'dropuot'",
        ),
        (["a.yaml", "--set", "epochs=3"], "write there what --preset, --data, --set would say"),
        (
            ["a.yaml", "A", "--mask", "none", "--seed", "0"],
            "write there what A, --preset, --data, --mask, --seed would say",
        ),
    ],
)
def test_wrong_trainings_are_refused(lab, prle, monkeypatch, words, message):
    monkeypatch.chdir(lab.outputs.parent)
    lab.config("Small", "A").write("a.yaml")
    code, _, text = prle("train", *words)
    assert code == 2 and message in text and not (lab.outputs / "runs").exists()


def test_a_configuration_may_name_its_data_as_seen_from_here(lab, prle, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = "detector: xception, subset: A, preset: tiny, width: 0.125, data: square/"
    (tmp_path / "a.yaml").write_text(f"{{{text}, recipe: {{epochs: 1, batch_size: 4}}}}")
    assert prle("train", "a.yaml", given=False)[0] == 0


def test_what_is_being_made_is_needed_already(lab, prle, monkeypatch):
    "By a training with its zoo, and by a user study; also if they are killed."

    real = Lab.train

    def die_unless_dry(lab, *args, **kwargs):
        if lab.store.dry:
            return real(lab, *args)
        raise KeyboardInterrupt

    training = "train Small A --mask primary"
    study = f"userstudy build --preset tiny --data {lab.data} --splits train test"
    for patched, words, runs in (
        ("prle.lab.experiments.Lab.train", training.split(), 6),
        ("prle.study.page.make_study", study.split(), 6 + 8),
    ):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(patched, die_unless_dry)
            prle(*words)
        assert len(recorded_runs(lab.outputs)) == runs


def test_what_has_seen_other_data_is_not_used_on_these(lab, prle, tmp_path):
    "Whose people it was trained on is not known any more; where the data have only been moved, it goes on."
    run = lab.detector("Small", "A")
    words = [
        ("localize", "Small-A"),
        ("predict", "Small-A", tmp_path / "absent.png"),
        ("evaluate", "Small-A", "--on", "mini-DF1"),
    ]
    shutil.move(tmp_path / "square", tmp_path / "moved")
    assert all("no manifest at" in prle(*w)[2] for w in words)
    assert prle("localize", "Small-A", "--data", tmp_path / "moved")[0] == 0
    manifest, other = read_manifest(tmp_path / "moved/manifest.parquet"), tmp_path / "other.parquet"
    swapped = manifest.split.replace(dict(train="test", test="train"))
    write_manifest(manifest.assign(split=swapped), other, tmp_path / "moved")
    code, _, text = prle("evaluate", "Small-A", "--data", other)
    assert code == 0 and "whether it has seen these people is not known" in text
    for w in words[:2]:
        code, _, text = prle(*w, "--data", other)
        assert code == 2 and "--data" in text
        assert f"{run.path.name} was trained on other data than lie in" in text
    assert prle("evaluate", "Small-A")[0] == 0, "its own scores are there"


def test_a_training_that_diverges_is_an_exit_code(lab, prle):
    for _ in range(2):
        code, _, text = prle("train", "Small", "A", "--set", "lr=1e30", "optimizer=SGD", "epochs=3")
        assert code == 1 and "failed: " in text and "lower lr" in text
    assert list_runs(lab.outputs / "runs").state.tolist() == ["failed"]


def test_evaluation_is_the_metrics_by_manipulation(lab):
    table = read_scores(lab.detector("Small", "A"))
    rows = evaluation(table).set_index(["subset", "unit", "measure"]).value
    part = table[table.subset.isin(["real", "B"])]
    for name, scores in (("B", part), ("all", table)):
        assert rows[name, "frame", "auc"] == pytest.approx(100 * auc(scores.label, scores.p_fake))
    assert set(evaluation(table).unit) == {"frame"}
    videos = table.assign(video=table.video.str[0])
    assert set(evaluation(videos).unit) == {"frame", "video"}


def test_other_pictures_are_cropped_as_the_training_faces(tmp_path):
    build_benchmark(tmp_path, size=64, people=6, steps=1)
    settings = crop_settings(tmp_path, 64)
    assert settings == dict(size=64, scale=SCALE, lift=LIFT, soft=SOFT)
    person = sorted(p.name for p in (tmp_path / "real").iterdir())[0].split("-")[0]
    photo = sorted((orl_folder() / person).glob("*.pgm"))[0]
    picture = read_image(photo)
    ours = crop_detected(picture, find_largest(picture), settings).astype(float)
    theirs = read_rgb(tmp_path / f"real/{person}-{photo.stem}.png").astype(float)
    assert np.abs(ours - theirs).mean() < 4, "but for the benchmark's JPEG"
    write_json(tmp_path / "e/extraction.json", dict(align="box", scale=1.7, size=300, count=3))
    assert crop_settings(tmp_path / "e", 64) == dict(size=64, align="box", scale=1.7)
    assert crop_settings(tmp_path / "nowhere", 64)["scale"] == 1.3


@pytest.mark.parametrize(
    "name, content",
    [
        ("forge.json", "[]"),
        ("forge.json", '{"config": 3}'),
        ("forge.json", '{"config": {"scale": "wide", "lift": 0}}'),
        ("forge.json", "{"),
        ("extraction.json", '{"align": "box"}'),
        ("extraction.json", '{"align": ["box"], "scale": 1.3}'),
        ("extraction.json", "null"),
    ],
)
def test_a_damaged_record_of_the_crops_is_named(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=name):
        crop_settings(tmp_path, 64)


def test_predict_scores_what_it_can(lab, prle, tmp_path):
    run, files = lab.detector("Small", "A"), tmp_path / "files"
    face = read_image(sorted((orl_folder() / "s1").glob("*.pgm"))[0])
    (files / "clip").mkdir(parents=True)
    for path in (files / "one.png", files / "clip/0.png", files / "clip/1.png"):
        cv2.imwrite(str(path), face)
    cv2.imwrite(str(files / "empty.png"), np.zeros((100, 100, 3), np.uint8))
    (files / "torn.png").write_bytes(b"\x89PNG torn")
    words = [files / name for name in ("one.png", "clip", "empty.png", "torn.png", "absent.mp4")]
    code, text, _ = prle("predict", "Small-A", *words, "--csv", tmp_path / "p.csv")
    table = pd.read_csv(tmp_path / "p.csv")
    assert code == 1 and "no face" in text
    assert table.faces.tolist() == [1, 2, 0, 0, 0]
    assert table.p_fake.notna().tolist() == [True, True, False, False, False]
    assert table.note[2] == "no face found" and "no such file" in table.note[4]
    assert table.note[3].startswith("cannot be read (")
    image = torch.from_numpy(crop_detected(face, find_largest(face), crop_settings("nowhere", 64)))
    logit = load_detector(run)(to_input(image.permute(2, 0, 1)[None], "cpu"))
    assert np.allclose(table.p_fake[:2], logit.double().sigmoid().item(), atol=1e-6)
    assert prle("predict", "Small-A", files / "one.png")[0] == 0
    assert reopen(run.path, outputs=lab.outputs)[1].key == run.key


def test_predict_says_how_many_people_there_are_and_scores_whom_one_asks_for(lab, prle, tmp_path):
    run, left, right = lab.detector("Small", "A"), photograph("s5", 150), photograph("s1", 110)
    frame = background((480, 270)).copy()
    frame[40 : 40 + len(left), 20:170], frame[60 : 60 + len(right), 340:450] = left, right
    cv2.imwrite(str(tmp_path / "two.png"), frame[..., ::-1])
    write_frames(tmp_path / "two.mp4", [frame] * 2 + [background((480, 270))], (480, 270))
    files = [tmp_path / "two.png", tmp_path / "two.mp4"]
    assert prle("predict", "Small-A", *files, "--csv", tmp_path / "p.csv")[0] == 0
    table = pd.read_csv(tmp_path / "p.csv").set_index("file")
    assert table.people.tolist() == [2, 2] and table.person.tolist() == [1, 1]
    said = "the largest of 2 people"
    assert table.note.tolist() == [said, f"{said}, in 2 of 3 frames"]
    prle("predict", "Small-A", *files, "--faces", "all", "--csv", tmp_path / "p.csv")
    everybody = pd.read_csv(tmp_path / "p.csv")
    assert everybody.person.tolist() == [1, 2] * 2 and everybody.faces.tolist() == [1, 1, 2, 2]
    assert everybody.p_fake[0] == table.p_fake.iloc[0] and everybody.p_fake.notna().all()
    prle("predict", "Small-A", files[0], "--cropped", "--csv", tmp_path / "p.csv")
    assert pd.read_csv(tmp_path / "p.csv").people.tolist() == [1]
    settings = crop_settings("nowhere", 64) | dict(align="none")
    with pytest.raises(ValueError, match="--cropped"):
        crop_detected(frame, find_largest(frame), settings)
    assert "exclude each other" in prle("predict", "Small-A", files[0], "--pictures", "--frames")[2]
    assert run.path.exists()


def test_predict_scores_photographs_one_by_one(lab, prle, tmp_path):
    lab.detector("Small", "A")
    for name in ("ann", "bob", "cleo"):
        (tmp_path / "album").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / f"album/{name}.png"), photograph("s1", 120))
    for options, rows in (([], 3), (["--frames"], 1), (["--pictures"], 3)):
        prle("predict", "Small-A", tmp_path / "album", *options, "--csv", tmp_path / "p.csv")
        assert len(pd.read_csv(tmp_path / "p.csv")) == rows


def test_what_cannot_be_scored_costs_itself(lab, prle, tmp_path):
    "A damaged video stops no other file of its folder, and what is left over is told beside the table."
    register_heif_opener()
    lab.detector("Small", "A")
    face = read_image(orl_folder() / "s5" / "1.pgm")
    (folder := tmp_path / "mine" / "z").mkdir(parents=True)
    Image.fromarray(face).save(folder / "0.heic", quality=95)
    (folder.parent / "a.mp4").write_bytes(b"no video")
    (folder.parent / "notes.txt").touch()
    code, text, said = prle("predict", "Small-A", folder.parent)
    header, *rows = text.splitlines()
    assert code == 1 and header.split()[0] == "file" and len(rows) == 2, "a table and no more"
    assert sum(" NaN " in row for row in rows) == 1
    assert "2 files: 1 scored, 1 without a score" in said and "notes.txt: neither" in said


def test_what_cannot_be_read_has_no_face_or_has_several_is_told_apart(lab, prle, tmp_path):
    lab.detector("Small", "A")
    (tmp_path / "torn.png").write_bytes(b"\x89PNG torn")
    cv2.imwrite(str(tmp_path / "wall.png"), background((320, 240)))
    two, (left, right) = background((480, 270)).copy(), map(photograph, ("s5", "s1"))
    two[40 : 40 + len(left), 20:150] = left
    two[40 : 40 + len(right), 300:430] = right
    cv2.imwrite(str(tmp_path / "two.png"), two[..., ::-1])
    files = [tmp_path / f"{name}.png" for name in ("torn", "wall", "two")]
    assert prle("predict", "Small-A", *files, "--csv", tmp_path / "p.csv")[0] == 1
    torn, wall, several = pd.read_csv(tmp_path / "p.csv").note
    assert torn == "cannot be read (not a picture, or damaged from its beginning)"
    assert (wall, several) == ("no face found", "the largest of 2 people")


def test_a_film_of_which_nothing_can_be_read_is_not_called_without_a_face(lab, prle, tmp_path):
    lab.detector("Small", "A")
    for name in ("torn", "half"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_bytes(b"\x89PNG torn")
        (tmp_path / name / "1.png").write_bytes(b"\x89PNG torn")
    cv2.imwrite(str(tmp_path / "half" / "1.png"), np.zeros((100, 100, 3), np.uint8))
    for name, note in (
        ("torn", "0.png: cannot be read (not a picture, or damaged from its beginning)"),
        ("half", "no face found; 1 of 2 frames cannot be read"),
    ):
        words = (tmp_path / name, "--frames", "--csv", tmp_path / "p.csv")
        assert prle("predict", "Small-A", *words)[0] == 1
        assert pd.read_csv(tmp_path / "p.csv").note.tolist() == [note]


def test_run_configurations_are_written_and_read(lab, tmp_path):
    changes = dict(mask="primary", alpha=(0.2, 0.8), zoo=("Other",), gamma=0.5)
    config = lab.config("Small", "A", 1, **changes)
    for name in ("a.yaml", "a.json"):
        assert RunConfig.read(config.write(tmp_path / name)) == config
    assert yaml.safe_load(str(config)) == json.loads((tmp_path / "a.json").read_text())
    text = "detector: xception\nsubset: DF\nrecipe: {lr: 2e-3}\nalpha: static\n"
    (tmp_path / "b.yaml").write_text(text)
    config = RunConfig.read(tmp_path / "b.yaml")
    assert config.recipe.lr == 0.002 and config.range == (1, 1)


@pytest.mark.parametrize(
    "text, message",
    [
        ("detector: xceptoin\nsubset: DF", "unknown detector 'xceptoin'. Did you mean 'xception'"),
        ("detector: xception", "RunConfig: .*subset"),
        (
            "detector: xception\nsubset: DF\nrecipe: {lrr: 1}",
            "unknown parameter 'lrr'. Did you mean 'lr'",
        ),
        ("detector: xception\nsubset: DF\nfusion: {tau: 7}", "tau must lie in"),
        ("detector: xception\nsubset: DF\nwidth: broad", "width must be a number, not 'broad'"),
        ("detector: [", "neither YAML nor JSON"),
        ("- a", "reads as names and values"),
        (
            "detector: xception\nsubset: DF\npreset: midi",
            "unknown preset 'midi'. Did you mean 'mini'",
        ),
        ("detector: xception\nsubset: DF\nwidth: -1", "width must be"),
        ("detector: xception\nsubset: DF\npretrained: maybe", "pretrained must be True or False"),
        ("detector: xception\nsubset: DF\nrecipe: {precision: fp8}", "unknown precision 'fp8'"),
        ("detector: xception\nsubset: DF\nzoo: [Xcep]", "Did you mean 'Xception'"),
    ],
)
def test_wrong_configurations_say_what_is_wrong(tmp_path, text, message):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        RunConfig.read(tmp_path / "a.yaml")


def test_a_read_only_copy_of_a_store_can_be_used(lab, prle):
    run = lab.detector("Small", "A")
    copy = lab.outputs.parent / "copy"
    shutil.copytree(run.path, copy / run.path.name)
    assert prle("evaluate", copy / run.path.name)[0] == 0
