"""prle.training.augmentations: what each does, that all can go on after an interruption, and who refuses which."""

import shutil

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from prle.core import torch_rng
from prle.data.datasets import FaceDataset
from prle.data.manifest import select
from prle.detectors import create_detector, list_detectors
from prle.detectors.registry import cam_grids, size_option
from prle.masking import PrimaryRegionMask, RandomMask
from prle.trainer import TrainConfig, TrainingFaces, predict, train
from prle.training.augmentations import (
    AUGMENTATIONS,
    Smoothing,
    _deepest,
    check_mixable,
    mixed_loss,
)
from prle.trust import write_digests

CONFIG = TrainConfig(epochs=2, batch_size=4, lr=1e-2)


def tiny_detector(name):
    "Any registered detector, as small as it can be, for faces of 64 pixels."
    torch.manual_seed(0)
    return create_detector(name, width=1 / 8, **size_option(name, 64))


def fit(tiny, toy, config=CONFIG, **kwargs):
    torch.manual_seed(0)
    detector = type(tiny)()
    history = train(detector, select(toy, "train", "A"), select(toy, "val", "A"), config, **kwargs)
    return detector, history, predict(detector, FaceDataset(select(toy, "test")))


def augmented(name, **changes):
    return TrainConfig(**{**vars(CONFIG), "augment": name, **changes})


@pytest.mark.parametrize("name", [name for name in AUGMENTATIONS if name != "none"])
def test_each_changes_the_training_and_goes_on_after_an_interruption(name, toy, tiny, tmp_path):
    plain = fit(tiny, toy)[2]
    detector, whole, scores = fit(tiny, toy, augmented(name), mask=RandomMask())
    assert not np.array_equal(plain, scores) and np.isfinite(whole.loss).all()
    assert not detector.get_submodule("body.0")._forward_hooks

    class Stopped(Exception):
        pass

    class Stopping(type(tiny)):
        def begin_epoch(self, epoch):
            if epoch == 1:
                raise Stopped

    torch.manual_seed(0)
    rows = select(toy, "train", "A"), select(toy, "val", "A")
    stopping, folder = Stopping(), tmp_path / "checkpoint"
    with pytest.raises(Stopped):
        train(stopping, *rows, augmented(name), RandomMask(), checkpoint=folder)
    Stopping.begin_epoch = type(tiny).begin_epoch
    again = Stopping()
    history = train(again, *rows, augmented(name), RandomMask(), checkpoint=folder)
    assert history.loss.tolist() == whole.loss.tolist()
    assert np.array_equal(predict(again, FaceDataset(select(toy, "test"))), scores)
    shutil.rmtree(folder)


def test_faces_are_augmented_after_they_are_masked_and_by_face_and_epoch(toy):
    faces = TrainingFaces(FaceDataset(toy), RandomMask(p=1.0), augment="cutout")
    alone = TrainingFaces(FaceDataset(toy), RandomMask(p=1.0), flip=False)
    both = TrainingFaces(FaceDataset(toy), RandomMask(p=1.0), flip=False, augment="cutout")
    cut = []
    for i in range(8):
        assert torch.equal(faces[3, i]["image"], faces[3, i]["image"])
        masked, twice = alone[3, i]["image"], both[3, i]["image"]
        assert (twice[masked == 0] == 0).all()
        cut.append((twice == 0).sum() > (masked == 0).sum())
    assert 0 < sum(cut) < 8


@pytest.mark.parametrize("name", ["cutout", "mixup", "erasing"])
def test_decoding_processes_change_nothing(name, toy, tiny):
    alone, more = (fit(tiny, toy, augmented(name, workers=n))[2] for n in (0, 2))
    assert np.array_equal(alone, more)


def test_gamma_weighs_the_masked_part_of_a_mixed_face(tiny):
    faces = torch.stack([torch.zeros(3, 8, 8), torch.ones(3, 8, 8)])
    batch = dict(image=faces, label=torch.tensor([0, 1]), weight=torch.tensor([1.0, 0.25]))
    for name in ("mixup", "cutmix"):
        mixed = AUGMENTATIONS[name].batch(batch, tiny, torch_rng(name, 3))
        white = mixed["image"].mean((1, 2, 3))  # of the face whose label is 1
        assert torch.allclose(mixed["shares"], torch.stack([1 - white, 0.25 * white], 1), atol=1e-6)
        assert 0.01 < white[0] < 0.99 and torch.equal(batch["label"], mixed["label"])


def test_mixed_loss_of_soft_labels_is_the_cross_entropy(tiny):
    logit, soft, weight = torch.randn(6), torch.rand(6), torch.rand(6)
    shares = weight[:, None] * torch.stack([1 - soft, soft], 1)
    batch = dict(label=torch.zeros(6, dtype=torch.long), weight=weight, shares=shares)
    expected = F.binary_cross_entropy_with_logits(logit, soft, weight)
    assert torch.isclose(mixed_loss(tiny, dict(logit=logit), batch), expected)


def additive(detector, batch):
    "Whether a detector's loss of one output is linear in the faces' weights."
    detector.train()
    with torch.random.fork_rng([]):
        outputs = detector.outputs(batch["image"])
    first, second = 0.05 * torch.rand(
        2, len(batch["label"])
    )  # a flooded loss is linear above its level
    loss = [detector.loss(outputs, batch | dict(weight=w)) for w in (first, second, first + second)]
    return torch.isclose(loss[0] + loss[1], loss[2], rtol=1e-3)


@pytest.mark.parametrize("name", list_detectors())
def test_a_detector_is_mixable_if_its_loss_is_linear_in_the_weights(name):
    detector = tiny_detector(name)
    size = 64
    batch = dict(image=torch.rand(4, 3, size, size), label=torch.tensor([0, 0, 1, 1]))
    batch |= dict(mask=torch.rand(4, 1, size, size).round(), mask_known=torch.ones(4).bool())
    assert additive(detector, batch) == detector.mixable
    if not detector.mixable:
        for augment in ("mixup", "cutmix", "smoothing"):
            with pytest.raises(ValueError, match=f"cannot be trained with {augment}"):
                check_mixable(augment, detector)
    check_mixable("cutout", detector)
    erased = AUGMENTATIONS["erasing"].batch(batch, detector, torch_rng(0))["image"]
    assert (erased != batch["image"]).any() and all(m.training for m in detector.modules())
    assert (
        erased.min() >= 0
        and erased.max() <= 1
        and all(p.grad is None for p in detector.parameters())
    )
    assert _deepest(cam_grids(detector, size)) in detector.cam_layers


def test_smoothing_keeps_the_weight_of_a_face(tiny):
    batch = dict(label=torch.tensor([0, 1]), weight=torch.tensor([1.0, 0.5]))
    shares = Smoothing(0.2).batch(batch, tiny, torch_rng(0))["shares"]
    assert torch.allclose(shares.sum(1), batch["weight"])
    assert torch.allclose(shares[:, 1], torch.tensor([0.1, 0.45]))


def test_blocks_are_dropped_while_the_network_trains(toy, tiny):
    x = torch.rand(2, 3, 24, 32)
    way = AUGMENTATIONS["dropblock"]
    with way.attached(tiny, 32):
        tiny.eval()
        assert torch.equal(tiny(x), tiny(x))
        tiny.train()
        assert not torch.equal(tiny(x), tiny(x))
    assert torch.equal(tiny(x), tiny(x))


def test_dropblock_measures_a_network_once(tiny, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "prle.training.augmentations.cam_grids", lambda *a: seen.append(a) or cam_grids(*a)
    )
    with AUGMENTATIONS["dropblock"].attached(tiny, 24):
        assert seen == [(tiny, 24)]


def test_primary_masks_and_mixing_together(toy, tiny, tmp_path):
    "Through the whole trainer, in parts of a batch."
    ramp = np.arange(1, 24 * 32 + 1, dtype=np.uint16).reshape(24, 32)
    for path in toy.path:
        (tmp_path / "q" / path).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / "q" / path), ramp)
    write_digests(tmp_path / "q")
    config = augmented("cutmix", accumulate=2, gamma=0.5)
    _, history, _ = fit(tiny, toy, config, mask=PrimaryRegionMask(), quantiles=tmp_path / "q")
    assert np.isfinite(history.loss).all()


def test_dropblock_drops_whole_cells_wherever_the_channels_are():
    torch.manual_seed(0)
    first = AUGMENTATIONS["dropblock"].drop(torch.ones(4, 6, 14, 14), 14)
    last = AUGMENTATIONS["dropblock"].drop(torch.ones(4, 14, 14, 6), 14)
    for maps in (first, last.movedim(3, 1)):
        empty = maps == 0
        blocks = torch.nn.functional.max_pool2d(empty.float(), 7, 1)
        assert empty.any() and not empty.all() and maps.shape == (4, 6, 14, 14)
        assert (torch.nn.functional.avg_pool2d(empty.float(), 7, 1) == 1).any() and blocks.any()
    with pytest.raises(ValueError, match="gives tokens"):
        AUGMENTATIONS["dropblock"].drop(torch.ones(4, 197, 192), 14)


def test_dropblock_drops_in_a_network_that_is_not_tuned(tiny):
    "Its layers are in evaluation mode all the time."
    seen, faces = [], torch.rand(2, 3, 24, 24)
    tiny.eval()
    with AUGMENTATIONS["dropblock"].attached(tiny, 24):
        tiny.get_submodule(_deepest(cam_grids(tiny, 24))).register_forward_hook(
            lambda layer, args, output: seen.append(output.detach().clone())
        )
        for training in (False, True):
            tiny.training = training
            with torch.no_grad():
                tiny(faces)
    assert not torch.equal(*seen)
