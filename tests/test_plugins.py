"""Detectors from outside: files that are named, packages that are installed; their code belongs to a run's name."""

import importlib
import os
import pickle

import pandas as pd
import pytest
import torch
from torch import nn

from prle import cli
from prle.detectors import create_detector, list_detectors, plugins, registry
from prle.detectors.plugins import PLUGINS, run_plugin, source_digest
from prle.detectors.registry import (
    check_detector,
    detector_facts,
    load_plugin,
    loaded_plugins,
    register_detector,
)
from prle.lab import experiments
from prle.lab.administration import list_runs, run_text
from prle.lab.configs import PRESETS, RunConfig
from prle.lab.experiments import Lab, load_detector
from prle.lab.integrity import read_run
from prle.lab.store import Run
from prle.paper.comparisons import choose_backbones
from prle.paper.tables import Table3
from test_experiments import TINY, write_square

OWN = """
from torch import nn
from prle.detectors.registry import Detector, Weights, register_detector

FACTS = Weights("none", "none", 64)


class Own(Detector):
    def __init__(self):
        super().__init__(FACTS, ("body.0",))
        self.body = nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.ReLU())
        self.head = nn.Linear(4, 1)

    def logit(self, x):
        return self.head(self.body(x).mean((2, 3))).squeeze(1)


@register_detector(FACTS)
def own(width=1.0, pretrained=False, dropout=0.0):
    return Own()
"""


@pytest.fixture(autouse=True)
def apart(monkeypatch):
    "The register and the environment are as they were after the test."
    monkeypatch.setenv(PLUGINS, "")
    monkeypatch.setattr(registry, "_registry", dict(registry._registry))
    monkeypatch.setattr(registry, "_tried", set(registry._tried))
    plugins.installed_plugins.cache_clear()
    yield
    plugins.installed_plugins.cache_clear()


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "my_detectors.py"
    path.write_text(OWN)
    return path


def test_a_named_file_is_a_detector_like_any_other(own):
    assert load_plugin(own) == ["own"] and "own" in list_detectors()
    model = create_detector("own", dropout=0.1)
    assert model(torch.rand(2, 3, 64, 64)).shape == (2,)
    assert (
        model.config == dict(name="own", width=1.0, dropout=0.1) and model.cam_name(64) == "body.0"
    )
    assert detector_facts("own").plugin == ("my_detectors.py", source_digest(own), str(own))
    assert loaded_plugins() == {"my_detectors.py": source_digest(own)}
    with pytest.raises(TypeError, match="'own' has no option 'droput'"):
        create_detector("own", droput=0.1)


def test_a_path_that_leads_up_and_down_again_is_the_file_it_ends_at(own):
    (own.parent / "sub").mkdir()
    assert (
        load_plugin(own.parent / "sub" / ".." / own.name) == ["own"] and "own" in list_detectors()
    )
    assert detector_facts("own").plugin.place == str(own) and os.environ[PLUGINS] == str(own)


def test_the_environment_names_plugins(own, tmp_path, monkeypatch):
    other = tmp_path / "other.py"
    other.write_text(OWN.replace("def own", "def another"))
    monkeypatch.setenv(PLUGINS, os.pathsep.join([str(own), str(other)]))
    assert {"own", "another"} <= set(list_detectors()) and len(loaded_plugins()) == 2
    monkeypatch.setenv(PLUGINS, str(tmp_path / "gone.py"))
    for _ in range(2):
        with pytest.raises(FileNotFoundError, match="there is no plugin .*gone.py: name a file"):
            list_detectors()


def test_a_package_is_a_plugin_with_all_its_code(tmp_path):
    folder = tmp_path / "mine"
    (folder / "nets").mkdir(parents=True)
    (folder / "__init__.py").write_text("from .nets.one import own\n")
    (folder / "nets/one.py").write_text(OWN)
    assert load_plugin(folder) == ["own"]
    before = detector_facts("own").plugin.code
    (folder / "nets/one.py").write_text(OWN.replace("dropout=0.0", "dropout=0.2"))
    load_plugin(folder)
    assert registry.detector_options("own") == dict(dropout=0.2), "the inner module is run anew"
    assert detector_facts("own").plugin.code == source_digest(folder) != before


def test_two_packages_of_one_folder_name_keep_their_own_modules(tmp_path):
    "Each imports its network when it is built."
    late = OWN.replace("    return Own()", "    from .part import made\n    return made(Own())")
    for name in ("a", "b"):
        (tmp_path / name / "mine").mkdir(parents=True)
        text = late.replace("def own", f"def own_{name}")
        (tmp_path / name / "mine/__init__.py").write_text(text)
        part = f"def made(model):\n    model.whose = {name!r}\n    return model\n"
        (tmp_path / name / "mine/part.py").write_text(part)
        load_plugin(tmp_path / name / "mine")
    for name in ("a", "b"):
        model = create_detector(f"own_{name}")
        assert model.whose == name and isinstance(pickle.loads(pickle.dumps(model)), type(model))


def test_a_changed_file_is_run_anew_at_once(own):
    "Whatever Python has cached: same size, same second."
    load_plugin(own)
    own.write_text(OWN.replace("dropout=0.0", "dropout=0.5"))
    load_plugin(own)
    assert registry.detector_options("own") == dict(dropout=0.5)
    own.write_text(OWN.replace("def own", "def new"))
    assert load_plugin(own) == ["new"] and "own" not in list_detectors(), "what is gone is gone"


BAD = {
    "line 3 cannot be loaded .SyntaxError": "\n\ndef (\n",
    "line 2 cannot be loaded .ModuleNotFoundError: No module named 'nothing'": "\nimport nothing\n",
    "registers no detector: put @register_detector": "x = 1\n",
    "there is a detector 'xception' already; call yours otherwise": OWN.replace(
        "def own", "def xception"
    ),
    "line 21 cannot be loaded .RuntimeError: late": OWN + "raise RuntimeError('late')\n",
}


@pytest.mark.parametrize("says", BAD)
def test_a_bad_plugin_is_refused_and_changes_nothing(says, tmp_path):
    before, path = dict(registry._registry), tmp_path / "bad.py"
    path.write_text(BAD[says])
    for _ in range(2):
        with pytest.raises((ImportError, ValueError), match=says):
            load_plugin(path)
    assert registry._registry == before and not os.environ[PLUGINS]


def test_what_is_no_plugin_is_said_to_be_none(tmp_path):
    (tmp_path / "notes.txt").write_text(OWN)
    with pytest.raises(ValueError, match="notes.txt is no plugin: name a file of Python"):
        run_plugin(tmp_path / "notes.txt")
    with pytest.raises(FileNotFoundError, match="there is no plugin .*__init__.py"):
        run_plugin(tmp_path)


def test_two_plugins_do_not_share_a_name(own, tmp_path):
    load_plugin(own)
    copy = tmp_path / "copy.py"
    copy.write_text(OWN)
    with pytest.raises(ValueError, match="copy.py: there is a detector 'own' already"):
        load_plugin(copy)
    assert detector_facts("own").plugin.place == str(own)


def test_an_unknown_detector_hints_at_plugins(own):
    with pytest.raises(
        ValueError, match=r"unknown detector 'own'.*\(--plugin FILE, or PRLE_PLUGINS\)"
    ):
        RunConfig("own", "A")
    assert check_detector("VGG", "VGG") == "VGG"


def install(folder, module, text, group=plugins.GROUP):
    "Lay a package with one module and its dist-info into a folder, as pip does."
    (folder / module).mkdir(parents=True)
    (folder / module / "__init__.py").touch()
    (folder / module / "detectors.py").write_text(text)
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\nmine = {module}.detectors\n")


def test_an_installed_package_is_found_without_being_named(tmp_path, monkeypatch, lines):
    install(tmp_path, "dummy_detectors", OWN)
    install(tmp_path, "broken_detectors", "import nothing_of_the_kind\n")
    install(tmp_path, "unrelated", "raise SystemExit\n", group="others")
    monkeypatch.syspath_prepend(tmp_path)
    assert "own" in list_detectors() and create_detector("own")(torch.rand(1, 3, 64, 64)).shape == (
        1,
    )
    code = source_digest(tmp_path / "dummy_detectors")
    assert loaded_plugins() == {"dummy_detectors": code} and not os.environ[PLUGINS]
    list_detectors()
    [line] = lines
    assert line == (
        "the installed plugin broken_detectors.detectors is left out "
        "(No module named 'nothing_of_the_kind')"
    )


def test_an_installed_package_that_was_imported_before_is_a_plugin_too(
    tmp_path, monkeypatch, lines
):
    "One of its modules, or all; two entry points of one package; another one of a namespace package."
    install(tmp_path, "early_detectors", OWN)
    folder = tmp_path / "early_detectors"
    (folder / "more.py").write_text(OWN.replace("def own", "def second"))
    with open(tmp_path / "early_detectors-1.0.dist-info/entry_points.txt", "a") as file:
        file.write("more = early_detectors.more\nspace = shared_space.nets\n")
    for name in ("nets", "others"):
        (tmp_path / "shared_space").mkdir(exist_ok=True)
        text = OWN.replace("def own", f"def of_{name}")
        (tmp_path / f"shared_space/{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("early_detectors.detectors", "shared_space.nets", "shared_space.others"):
        importlib.import_module(name)
    assert {"own", "second", "of_nets"} <= set(list_detectors()) and lines == []
    codes = {"early_detectors": source_digest(folder)}
    codes["nets.py"] = source_digest(tmp_path / "shared_space/nets.py")
    assert loaded_plugins() == codes and detector_facts("of_others").plugin is None
    assert RunConfig("own", "A").key()["plugin"] == codes["early_detectors"]


def test_the_code_belongs_to_the_key_of_plugins_alone(own):
    registered = RunConfig("xception", "A").key()
    load_plugin(own)
    first = RunConfig("own", "A").key()
    assert RunConfig("xception", "A").key() == registered and "plugin" not in registered
    own.write_text(OWN + "\n# changed\n")
    load_plugin(own)
    second = RunConfig("own", "A").key()
    differ = {name for name in first | second if first.get(name) != second.get(name)}
    assert differ == {"plugin"} and second["plugin"] == source_digest(own)


@pytest.fixture
def prle(toy, tmp_path, monkeypatch, capsys):
    "The command on toy faces: words -> (exit code, what it printed, what it complained)."
    monkeypatch.setitem(PRESETS, "tiny", TINY)
    data = write_square(toy, tmp_path / "square")

    def run(*words):
        options = ["--preset", "tiny", "--data", str(data)] if words[0] in ("train", "plan") else []
        code = cli.main([*map(str, words), *options, "--outputs", str(tmp_path / "out")])
        return (code, *capsys.readouterr())

    return run


def forget():
    "Be a new process: no plugin is named, none was run."
    os.environ[PLUGINS] = ""
    for name in [n for n, c in registry._registry.items() if c.facts.plugin]:
        del registry._registry[name]
    registry._tried.clear()


def test_train_maps_masks_and_scores_from_the_command_line(own, prle, tmp_path):
    "Trained plainly as its own zoo, then with its own masks."
    words = ["train", "own", "A", "--mask", "primary", "--published", "--set", "zoo=[own]"]
    code, _, said = prle(*words)
    assert code == 2 and "unknown backbone 'own'" in said and "--plugin FILE" in said
    code, text, _ = prle(*words, "--plugin", own)
    assert code == 0 and "auc" in text
    runs = list_runs(tmp_path / "out/runs")
    assert sorted(runs.kind) == ["detectors", "detectors", "fusions", "maps"]
    folder = next((tmp_path / "out/runs/detectors").glob("own-A-none-s0-*"))
    config, origin = read_run(folder)
    assert config["plugin"] == source_digest(own)
    assert origin["plugins"] == {"my_detectors.py": source_digest(own)}
    shown = run_text(tmp_path / "out/runs", folder.name)
    assert f"plugins:\n  my_detectors.py {source_digest(own)}" in shown

    own.write_text(OWN + "\n# changed\n")
    forget()
    _, text, _ = prle(*words, "--plugin", own)
    assert len(list_runs(tmp_path / "out/runs", "detectors")) == 4, "a changed plugin is a new run"


def test_a_run_is_opened_with_its_plugin(own, prle, tmp_path, lines):
    prle("train", "own", "A", "--plugin", own)
    name = next((tmp_path / "out/runs/detectors").iterdir()).name
    assert prle("localize", name, "--plugin", own)[0] == 0
    assert not any("other code than" in line for line in lines)
    forget()
    code, _, said = prle("localize", name)
    assert code == 2 and "unknown detector 'own'" in said and "--plugin FILE" in said
    own.write_text(OWN + "\n# changed\n")
    folder = tmp_path / "out/runs/detectors" / name
    load_plugin(own)
    load_detector(Run(folder, name[-16:], True))
    assert lines[-1] == f"NOTE my_detectors.py is other code than has trained {name}."


def test_a_plugin_that_is_loaded_again_is_looked_at_again(own, toy, tmp_path, monkeypatch):
    "Its options, whether it takes the faces, and the layer of its maps."
    monkeypatch.setitem(PRESETS, "tiny", TINY)
    lab = Lab("tiny", data=write_square(toy, tmp_path / "square"), outputs=tmp_path / "out")
    layers, localize = [], experiments.localize

    def spy(net, layer, *args, **kwargs):
        layers.append(type(layer))
        return localize(net, layer, *args, **kwargs)

    monkeypatch.setattr(experiments, "localize", spy)
    load_plugin(own)
    run = lab.detector("own", "A")
    lab.attention(run, "test")
    assert lab.config("own", "A").options == {}
    own.write_text(OWN.replace("body.0", "body.1").replace("dropout=0.0", "size=64"))
    load_plugin(own)
    lab.attention(run, "val")
    assert layers == [nn.Conv2d, nn.ReLU]
    assert lab.config("own", "A").options == dict(size=64)
    refused = "raise ValueError('too small')\n        return self.head"
    own.write_text(OWN.replace("return self.head", refused))
    load_plugin(own)
    with pytest.raises(ValueError, match="too small"):
        lab.dry().detector("own", "A")


def test_tables_take_a_plugins_detector_by_name(own, tmp_path):
    lab = Lab("mini", outputs=tmp_path)
    load_plugin(own)
    assert choose_backbones(lab, ["own", "VGG"]) == ["own", "VGG"]
    lab.manifest = pd.DataFrame(dict(subset=["real", "DF"]))
    assert {arm.backbone for arm in Table3().arms(lab, ["own"])} == {"own"}


def test_a_registered_name_is_not_marked(own):
    "Registering by hand, as in a notebook, is no plugin."

    @register_detector(detector_facts("xception").weights)
    def by_hand(width=1.0, pretrained=False):
        raise AssertionError

    load_plugin(own)
    assert detector_facts("by_hand").plugin is None and detector_facts("own").plugin
