"""The command line as a whole: what it offers, says and imports. The commands are tested with what they do."""

import inspect
import re
import subprocess
import sys
from dataclasses import asdict

import pytest
from fastcore.docments import docments

import prle
from prle import cli
from prle.lab.configs import PRESETS, READING, FusionConfig
from prle.lab.experiments import Lab
from prle.lab.store import RunStore
from prle.paper import reproduce
from prle.study import command

OPTIONS = {
    "check": "compression subsets part variants protocol reals frames split",
    "faces": "root out count every align size scale workers engine faces finder cropped keep-empty pictures "
    "compression subsets part variants protocol reals frames split",
    "convert": "root out splits label compression subsets part variants protocol reals frames split",
    "forge": "faces out size people most seed steps count",
    "reproduce": "seeds preset data outputs plugin engine gpus remake estimate",
    "plan": "seeds preset data outputs plugin",
    "report": "compare out preset data outputs plugin",
    "runs": "kind match code delete outputs",
    "train": "mask seed cam explain published zoo-seed zoo-subset set processes track preset data outputs plugin",
    "audit": "mask subset split seed published fusion set draws masks manifest figure preset data outputs plugin",
    "controls": "faces trainings engine outputs",
    "export": "data outputs plugin out licence format",
    "localize": "data outputs plugin split subset cam explain out also shard engine workers",
    "evaluate": "data outputs plugin on measures robustness degradations also maps selection",
    "predict": "data outputs plugin also count csv json explain report faces finder cropped pictures frames workers",
    "userstudy build": "participants images subsets splits practice seed secret-of consent post confidence out "
    "preset data outputs",
    "userstudy serve": "host port name",
    "userstudy analyse": "figure",
}
FUNCTIONS = [*cli.COMMANDS.values()][:-1] + [command.build, command.serve, command.analyse]


def said(capsys, words):
    "What the command prints before it stops."
    with pytest.raises(SystemExit) as stopped:
        cli.main(words.split())
    out, err = capsys.readouterr()
    return stopped.value.code, out + err


@pytest.mark.parametrize("words", OPTIONS)
def test_help_names_every_option(words, capsys):
    code, text = said(capsys, f"{words} --help")
    named = re.findall(r"^  (?:-h, )?--([a-z-]+)", text, re.MULTILINE)
    assert code == 0 and sorted(named) == sorted(["help", *OPTIONS[words].split()])


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_every_parameter_is_explained(function):
    entries = docments(function, full=True, returns=False, eval_str=True)
    assert all(entry.docment for entry in entries.values())
    assert entries.keys() == inspect.signature(function).parameters.keys()


def test_help_and_version_need_no_large_package():
    code = """
import sys
from prle.cli import main
try:
    main(sys.argv[1:])
except SystemExit:
    print(*({"torch", "pandas", "numpy", "cv2", "yaml"} & sys.modules.keys()), file=sys.stderr)
"""
    for words in (["--help"], ["--version"], ["plan", "--help"]):
        command = [sys.executable, "-c", code, *words]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stderr == "\n" and done.stdout


def test_version(capsys):
    assert said(capsys, "--version") == (0, f"prle {prle.__version__}\n")


def test_wrong_words(capsys):
    for words, message in (
        ("", "required: command"),
        ("chekc", "invalid choice: 'chekc'"),
        ("userstudy", "required: step"),
        ("check ff++", "required: root"),
        ("faces clip.mp4", "required: --out"),
        ("forge --size large", "argument --size: invalid int value: 'large'"),
        ("runs list --codes stale", "unrecognized arguments: --codes"),
        ("userstudy build --splits holdout", "invalid choice: 'holdout'"),
    ):
        code, text = said(capsys, words)
        assert code == 2 and message in text


@pytest.mark.parametrize(
    "words, message",
    [
        ("runs maps/a --delete", "a single run takes no --delete"),
        ("runs a --kind maps --match a --code stale", "takes no --kind, --match, --code"),
        ("runs --delete", "prle runs list takes no --delete"),
        ("runs check --delete", "prle runs check takes no --delete"),
        ("evaluate a --maps --also b --degradations jpeg", "takes no --also, --degradations"),
        ("evaluate a --maps --measures eer", "--maps takes no --measures"),
        ("evaluate a --maps --selection", "--maps takes no --selection"),
        ("evaluate a --selection --on DFDC", "--selection takes no --on"),
        ("evaluate a --selection --also b", "without --robustness takes no --also"),
        ("evaluate a --robustness r --maps --measures ap", "takes no --maps, --measures"),
        ("localize a crops --out o --split val --subset DF", "takes no --split, --subset"),
        ("convert a.parquet --out o --root r --splits val", "takes no --root, --splits"),
        ("convert a.parquet --out o --label a=real", "a manifest takes no --label"),
        ("convert a.parquet b.parquet --out o", "one manifest or data set at a time"),
        ("convert ff++ --root . --out o --splits val", "a data set takes no --splits"),
        ("report --compare a b --preset smoke --data d", "--compare takes no --preset, --data"),
        ("reproduce --estimate --remake fusions", "--estimate takes no --remake"),
        ("audit --masks m --fusion mean --set alpha=static", "--masks takes no --fusion, --set"),
        ("audit --subset DF --manifest m.parquet", "without --masks takes no --manifest"),
    ],
)
def test_what_does_nothing_beside_the_rest_is_refused(
    words, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert cli.main(words.split()) == 2
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_words_that_are_taken():
    parser = cli.parser()
    args = parser.parse_args("faces a.mp4 b --out o --every 3 --subsets DF NT --frames".split())
    assert args.run is cli.faces and args.inputs == ["a.mp4", "b"]
    assert (args.every, args.subsets, args.frames, args.size) == (3, ["DF", "NT"], True, 256)
    assert (
        list(parser.parse_args(["plan"]).ids) == [] and parser.parse_args(["runs"]).what == "list"
    )
    args = parser.parse_args("userstudy serve --name a --name b folder".split())
    assert (args.name, args.folder, args.port) == (["a", "b"], "folder", 8787)


def test_an_option_of_several_words_may_stand_there_twice():
    parser = cli.parser()
    args = parser.parse_args("train VGG DF --set a=1 b=2 --set c=3".split())
    assert args.set == ["a=1", "b=2", "c=3"]
    args = parser.parse_args("evaluate r --measures eer --measures ap ece".split())
    assert args.measures == ["eer", "ap", "ece"], "the default is replaced, as by a single one"
    assert list(parser.parse_args(["evaluate", "r"]).measures) == ["auc", "acc"]


@pytest.mark.parametrize(
    "words, message",
    [
        ("train VGG DF --set seed=3", "--set takes no seed: --seed says that"),
        ("train VGG DF --set lr=1 --set mask=primary", "--set takes no mask: --mask says that"),
        ("train VGG DF --set backbone=VGG", "--set takes no backbone: the first word says that"),
        ("train VGG DF --set zoo_seed=1", "--set takes no zoo_seed: --zoo-seed says that"),
        ("train VGG DF --set self=1", "unknown parameter 'self'"),
        ("audit --subset DF --set draws=3", "--set takes no draws: --draws says that"),
        ("audit --subset DF --set split=val seed=1", "--set takes no split: --split says that"),
        ("audit --subset DF --set seed=7 mask=random", "--set takes no seed: --seed says that"),
        ("audit --subset DF --set backbone=VGG", "unknown parameter 'backbone'"),
        ("audit --subset DF --set lab=1", "unknown parameter 'lab'"),
    ],
)
def test_what_an_option_says_is_not_set(words, message, tmp_path, capsys):
    assert cli.main([*words.split(), "--outputs", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_part_of_a_reading_changes_that_part():
    merged, reading = cli._merged, cli._reading(dict(cam="layercam", explain="predicted"))
    cam = dict(method="layercam", explain="predicted", grid=16)
    assert merged(reading, dict(cam=dict(grid=16))) == reading | dict(cam=cam)
    fusion = asdict(READING["fusion"]) | dict(tau=0.1)
    assert merged(reading, dict(fusion=dict(tau=0.1), p=0.2)) == reading | dict(
        fusion=fusion, p=0.2
    )
    whole = dict(fusion=dict(method="mean", tau=0.1))
    assert merged(reading, whole) == reading | whole
    assert cli._mask_settings(True, "union", ["fusion={tau: 0.1}"])["fusion"] == asdict(
        FusionConfig("union", tau=0.1)
    )


def test_what_a_recipe_s_notebooks_need_is_needed(tmp_path, monkeypatch):
    "A preset with a recipe has the data of its base."
    asked = []
    monkeypatch.setattr(reproduce, "plan", lambda lab, *a, **k: asked.append(lab.name) or lab.dry())
    monkeypatch.setattr(Lab, "dry", lambda lab: lab)
    monkeypatch.setattr(RunStore, "names", lambda store: [], raising=False)
    (tmp_path / "data/mini").mkdir(parents=True)
    (tmp_path / "data/mini/forge.json").touch()
    cli._needed(tmp_path)
    assert asked == ["mini", "mini+paper", "mini+release"]


def test_the_help_names_all_presets():
    for function in (cli.reproduce, cli.plan, cli.train, cli.audit, command.build):
        text = docments(function)["preset"]
        assert all(name in text for name, preset in PRESETS.items() if not preset.base)


def test_a_fault_of_the_code_is_shown_as_it_is(monkeypatch):
    def broken(what="list"):
        raise RuntimeError("a fault")

    monkeypatch.setitem(cli.COMMANDS, "runs", broken)
    broken.__doc__ = "Break."
    monkeypatch.setattr(
        cli, "add_command", lambda parser, run: parser.set_defaults(run=run, what="list")
    )
    with pytest.raises(RuntimeError, match="a fault"):
        cli.main(["runs"])
