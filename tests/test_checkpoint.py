"""prle.checkpoint: a state is whole or absent, and damage is found."""
import json

import pytest
import torch

from prle.checkpoint import Checkpoint, check_same, load_checkpoint, save_checkpoint


def write(folder, last=3):
    for n in range(1, last + 1):
        save_checkpoint(folder, Checkpoint(n, dict(model=dict(w=torch.arange(6.).view(2, 3) + n)), dict(stream=torch.arange(n), deep=dict(a=[1, 2.5, None])), dict(auc=n / 7)))
    return folder


def test_everything_comes_back_and_two_stay(tmp_path):
    found = load_checkpoint(write(tmp_path / "c", 4))
    assert found.epochs == 4 and found.record == dict(auc=4 / 7) and found.state["deep"] == dict(a=[1, 2.5, None])
    assert torch.equal(found.tensors["model"]["w"], torch.arange(6.).view(2, 3) + 4) and torch.equal(found.state["stream"], torch.arange(4))
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == ["epoch-3", "epoch-4"]


def test_ten_comes_after_nine(tmp_path):
    assert load_checkpoint(write(tmp_path, 10)).epochs == 10


def test_there_may_be_none(tmp_path):
    assert load_checkpoint(tmp_path / "nowhere") is None and load_checkpoint(tmp_path) is None


@pytest.mark.parametrize("file", ["model.safetensors", "state.pt", "checkpoint.json"])
@pytest.mark.parametrize("harm", ["flip", "cut", "empty", "remove"])
def test_damage_is_found_set_aside_and_named(tmp_path, file, harm):
    path = write(tmp_path) / "epoch-3" / file
    data = bytearray(path.read_bytes())
    if harm == "flip": data[2 * len(data) // 3] ^= 1
    path.write_bytes(dict(flip=data, cut=data[:-10], empty=b"", remove=b"")[harm])
    if harm == "remove": path.unlink()
    with pytest.warns(UserWarning, match=f"epoch-3/{file} is (damaged|missing); the checkpoint is set aside as epoch-3.damaged-1 and training goes on after epoch 2"):
        assert load_checkpoint(tmp_path).epochs == 2
    assert (tmp_path / "epoch-3.damaged-1").is_dir() and load_checkpoint(tmp_path).epochs == 2


def test_two_damaged_ones_leave_nothing(tmp_path):
    write(tmp_path)
    for n in (2, 3): (tmp_path / f"epoch-{n}/state.pt").write_bytes(b"")
    (tmp_path / "epoch-3.damaged-1").mkdir()
    with pytest.warns(UserWarning) as caught: assert load_checkpoint(tmp_path) is None
    assert ["epoch-3.damaged-2" in str(caught[0].message), "epoch-2.damaged-1" in str(caught[1].message)] == [True, True]
    assert all("training starts anew" in str(w.message) for w in caught)


def test_nothing_in_it_is_executed(tmp_path):
    "A state.pt with a pickled call, its fingerprint made to fit, is refused."
    import pickle

    from prle.core import digest, file_digest
    write(tmp_path)

    class Bomb:
        def __reduce__(self): return (open, (str(tmp_path / "executed"), "w"))
    state, note = tmp_path / "epoch-3/state.pt", tmp_path / "epoch-3/checkpoint.json"
    torch.save(Bomb(), state)
    body = json.loads(note.read_text())
    body.pop("digest")
    body["files"]["state.pt"] = file_digest(state)
    note.write_text(json.dumps(dict(body, digest=digest(body))))
    with pytest.raises(pickle.UnpicklingError): load_checkpoint(tmp_path)
    assert not (tmp_path / "executed").exists()


def test_what_a_killed_process_leaves_is_removed(tmp_path):
    write(tmp_path)
    for name in (".epoch-4-0123abcd", ".epoch-1.deleted"): (tmp_path / name).mkdir()
    load_checkpoint(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["epoch-2", "epoch-3"]


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    write(tmp_path)
    monkeypatch.setattr(torch, "save", lambda *a: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"): write(tmp_path, 4)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["epoch-2", "epoch-3"]


def test_another_training_is_refused_with_every_difference():
    a, b = dict(config=dict(lr=0.1, seed=0), mask="None", train=dict(faces=12)), dict(config=dict(lr=0.2, seed=0), mask="RandomMask()", train=dict(faces=12))
    check_same(a, dict(a), "here")
    check_same(dict(sizes=[1, 2]), dict(sizes=(1, 2)), "here")
    with pytest.raises(ValueError, match=r"here holds a checkpoint of another training: config.lr is 0.1 there and 0.2 here; mask is None there and RandomMask\(\) here"):
        check_same(a, b, "here")
    with pytest.raises(ValueError, match="detector.width is None there and 0.5 here"): check_same({}, dict(detector=dict(width=0.5)), "here")
