"""prle.trainer: Algorithm 1, Eq. 13, and what must not happen in training."""

import shutil
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import write_ramps
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

import prle.core
from prle.core import digest
from prle.data.datasets import FaceDataset
from prle.data.manifest import select
from prle.detectors.registry import Recipe, cross_entropy
from prle.masking import LandmarkMask, PrimaryRegionMask, RandomMask
from prle.trainer import (
    MovingAverage,
    Objective,
    TrainConfig,
    TrainingFaces,
    _detector_identity,
    check_split,
    create_optimizer,
    create_schedule,
    epoch_order,
    face_weights,
    predict,
    to_input,
    train,
    TrainInputs,
)
from prle.trust import write_digests

CONFIG = TrainConfig(epochs=2, batch_size=4, lr=1e-2)


@pytest.fixture
def quantiles(toy, tmp_path):
    return write_ramps(tmp_path / "q", toy)


def fit(detector, toy, config=CONFIG, device="cpu", **kwargs):
    history = train(
        detector,
        select(toy, "train", "A"),
        select(toy, "val", "A"),
        config,
        device=device,
        **kwargs,
    )
    return history, predict(detector, FaceDataset(select(toy, "test")), device=device)


def again(tiny):
    torch.manual_seed(0)
    return type(tiny)()


def test_p_zero_is_plain_training_bit_for_bit(toy, tiny, quantiles):
    _, plain = fit(tiny, toy)
    _, masked = fit(again(tiny), toy, mask=PrimaryRegionMask(p=0.0), quantiles=quantiles)
    assert np.array_equal(plain, masked)
    _, primary = fit(again(tiny), toy, mask=PrimaryRegionMask(p=1.0), quantiles=quantiles)
    assert not np.array_equal(plain, primary)


def test_without_masks_it_is_the_loop_that_everybody_writes(toy, tiny):
    "EMA and flips off, last epoch chosen: Adam on the mean cross-entropy, cosine to zero."
    config = TrainConfig(epochs=2, batch_size=4, lr=1e-2, ema=0, flip=False)
    history, scores = fit(tiny, toy, config)
    model, rows = again(tiny), select(toy, "train", "A")
    torch.manual_seed(config.seed)
    faces, optimizer = FaceDataset(rows), torch.optim.Adam(model.parameters(), lr=1e-2, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, 2 * len(epoch_order(len(faces), 4, 0, 0))
    )
    states = []
    for epoch in range(2):
        model.train()
        for keys in epoch_order(len(faces), 4, epoch, 0):
            x = to_input(torch.stack([faces[i]["image"] for _, i in keys]), "cpu")
            y = torch.tensor([faces[i]["label"] for _, i in keys]).float()
            optimizer.zero_grad()
            F.binary_cross_entropy_with_logits(model(x), y).backward()
            optimizer.step()
            schedule.step()
        states.append({k: v.clone() for k, v in model.state_dict().items()})
    model.load_state_dict(states[int(np.flatnonzero(history.chosen)[0])])
    assert np.allclose(scores, predict(model, FaceDataset(select(toy, "test"))), atol=1e-6)


def test_eq_13_by_hand():
    logit, label = torch.tensor([0.3, -1.2, 2.0]), torch.tensor([1, 0, 0])
    p = torch.sigmoid(logit)
    each = -(label * p.log() + (1 - label) * (1 - p).log())
    for gamma in (0.0, 0.5, 1.0):
        expected = (each[0] + gamma * each[1] + each[2]) / 3
        weight = face_weights(torch.tensor([False, True, False]), gamma)
        assert torch.isclose(cross_entropy(logit, dict(label=label, weight=weight)), expected)


def test_gamma_reaches_the_loss(toy, tiny, quantiles):
    mask = PrimaryRegionMask(p=1.0)
    none, _ = fit(
        tiny, toy, TrainConfig(epochs=1, batch_size=4, gamma=0.0), mask=mask, quantiles=quantiles
    )
    full, _ = fit(
        again(tiny),
        toy,
        TrainConfig(epochs=1, batch_size=4, gamma=1.0),
        mask=mask,
        quantiles=quantiles,
    )
    assert none.loss[0] == 0 < full.loss[0]


def test_masks_are_drawn_by_face_and_epoch(toy, quantiles):
    faces = TrainingFaces(
        FaceDataset(toy, quantiles=quantiles), PrimaryRegionMask(p=1.0), flip=False
    )

    def black(epoch, i):
        return (faces[epoch, i]["image"] == 0).all(0).float().mean().item()

    assert black(0, 3) == black(0, 3)
    assert len({round(black(epoch, i), 4) for epoch in range(4) for i in range(4)}) > 12


@pytest.mark.parametrize("mask", [PrimaryRegionMask(), RandomMask(fill="noise"), LandmarkMask()])
def test_workers_change_nothing_and_share_no_stream(toy, quantiles, mask):
    faces = TrainingFaces(FaceDataset(toy, quantiles=quantiles), mask, seed=5)
    order = epoch_order(len(faces), 4, epoch=1, seed=5)
    epochs = [
        [
            torch.cat([b.flatten().float() for b in batch.values()])
            for batch in DataLoader(faces, batch_sampler=order, num_workers=n)
        ]
        for n in (0, 1, 2)
    ]
    for other in epochs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(epochs[0], other))


@pytest.mark.parametrize("workers", [0, 1])
def test_renewed_maps_reach_the_decoding_processes(toy, quantiles, tmp_path, workers):
    "The first epoch masks the upper half, the second the lower one."
    halves = np.ones((2, 24, 32), np.uint16)
    halves[0, 12:] = halves[1, :12] = 0
    for name, half in zip(("upper", "lower"), halves):
        for path in toy.path:
            (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(tmp_path / name / path), half)
        write_digests(tmp_path / name)
    config = TrainConfig(epochs=2, batch_size=4, flip=False, workers=workers)
    mask, faces = PrimaryRegionMask(p=1.0, alpha=(1.0, 1.0)), select(toy, "train", "A")
    inputs = TrainInputs(faces, select(toy, "val", "A"), config, mask, tmp_path / "upper")
    black = []
    for epoch, name in enumerate(("upper", "lower")):
        inputs.use_quantiles(tmp_path / name)
        images = torch.cat([items["image"] for items, *_ in inputs.epoch(epoch)])
        black.append(
            [(images[:, :, rows] == 0).all().item() for rows in (slice(12), slice(12, 24))]
        )
    assert black == [[True, False], [False, True]]


def test_a_detectors_options_may_have_any_name(tiny):
    tiny.config = dict(name="own", type="deep", tensors=3)
    found = _detector_identity(tiny)
    assert found["name"] == "own" and found["type"] == type(tiny).__name__
    tiny.config = dict(name="own")
    assert _detector_identity(tiny) == found


def test_maps_that_stay_the_same_are_taken_up_once(toy, tiny, quantiles, monkeypatch):
    seen, real = [], FaceDataset.use_quantiles
    monkeypatch.setattr(FaceDataset, "use_quantiles", lambda *a: seen.append(a[1]) or real(*a))
    other = quantiles.parent / "other"
    shutil.copytree(quantiles, other)
    how = dict(mask=PrimaryRegionMask(), quantiles=quantiles)
    folders = [None, quantiles, other, other / ".." / "other", None]
    config = TrainConfig(epochs=5, batch_size=4)
    fit(tiny, toy, config, renewal=lambda student, epoch: folders[epoch], **how)
    assert seen[0] == quantiles and [folder for folder in seen[1:] if folder] == [other]


def write_true_masks(toy):
    "Give every fake a mask: its left half."
    root, half = Path(toy.attrs["root"]), np.zeros((24, 32), np.uint8)
    half[:, :16] = 255
    (root / "masks").mkdir(exist_ok=True)
    cv2.imwrite(str(root / "masks/half.png"), half)
    rows = toy.assign(mask=np.where(toy.label == 1, "masks/half.png", ""))
    rows.attrs = toy.attrs
    return rows


def test_true_masks_reach_the_loss_and_are_mirrored_with_the_face(toy, tiny):
    rows, seen = write_true_masks(toy), []
    tiny.needs = ("mask",)
    tiny.loss = lambda outputs, batch: seen.append(batch) or cross_entropy(outputs["logit"], batch)
    fit(tiny, rows, TrainConfig(epochs=2, batch_size=6, flip=True))
    masks, labels = (torch.cat([b[k] for b in seen]) for k in ("mask", "label"))
    assert masks.shape[1:] == (1, 24, 32) and not masks[labels == 0].any()
    left = masks[labels == 1][:, 0, 0, 0]
    assert set(left.tolist()) == {0.0, 1.0}, "some mirrored, some not"
    faces = TrainingFaces(FaceDataset(rows, masks=True), seed=1)
    for i in range(8):
        item, plain = faces[0, i], FaceDataset(rows, masks=True)[i]
        flipped = torch.equal(item["image"], plain["image"].flip(-1))
        assert torch.equal(item["mask"], plain["mask"].flip(-1) if flipped else plain["mask"])


def test_a_fake_without_a_mask_costs_only_itself(toy, tiny):
    rows, seen = write_true_masks(toy), []
    rows.loc[rows.path == "A/1_1.png", "mask"] = ""
    tiny.needs = ("mask",)
    tiny.loss = lambda outputs, batch: seen.append(batch) or cross_entropy(outputs["logit"], batch)
    with pytest.warns(
        UserWarning,
        match="1 of 6 fakes have no mask of their manipulated pixels, A/1_1.png among them",
    ):
        fit(tiny, rows, TrainConfig(epochs=1, batch_size=4))
    masks, labels, known = (
        torch.cat([b[k] for b in seen]) for k in ("mask", "label", "mask_known")
    )
    assert (
        len(known) == 12
        and (~known).sum() == 1
        and labels[~known].all()
        and not masks[~known].any()
        and masks[known & (labels == 1)].flatten(1).any(1).all()
    )


def test_a_detector_that_needs_masks_says_so_where_there_are_none(toy, tiny):
    tiny.needs = ("mask",)
    with pytest.raises(
        ValueError,
        match='6 of 6 fakes have no mask of their manipulated pixels, A/0_0.png among them.*supervision="weak"',
    ):
        fit(tiny, toy)


def test_epochs_are_announced(toy, tiny):
    told = []
    tiny.begin_epoch = told.append
    fit(tiny, toy, TrainConfig(epochs=3, batch_size=4))
    assert told == [0, 1, 2]


@pytest.mark.parametrize(
    "schedule, expected",
    [
        ("constant", [1, 1, 1, 1]),
        ("cosine", [1, 0.8536, 0.5, 0.1464]),
        ("step 2 0.1", [1, 1, 0.1, 0.1]),
    ],
)
def test_schedules(schedule, expected):
    config = TrainConfig(epochs=4, lr=0.5, optimizer="AdamW", weight_decay=0.1, schedule=schedule)
    optimizer = create_optimizer(config, nn.Linear(1, 1).parameters())
    scheduler = create_schedule(config, optimizer, steps=3)
    rates = []
    for _ in range(12):
        rates.append(optimizer.param_groups[0]["lr"] / 0.5)
        optimizer.step(), scheduler.step()
    assert rates[::3] == pytest.approx(expected, abs=1e-4)
    assert type(optimizer) is torch.optim.AdamW and optimizer.param_groups[0]["weight_decay"] == 0.1


def test_the_recipe_of_the_original_as_settings():
    config = TrainConfig.of(
        Recipe(
            optimizer="SGD",
            lr=0.002,
            weight_decay=1e-3,
            schedule="step 5 0.5",
            batch_size=None,
            epochs=7,
        ),
        seed=3,
    )
    assert config == TrainConfig(
        optimizer="SGD",
        lr=0.002,
        weight_decay=1e-3,
        schedule="step 5 0.5",
        epochs=7,
        seed=3,
        ema=0.0,
    )
    optimizer = create_optimizer(config, nn.Linear(1, 1).parameters())
    assert optimizer.param_groups[0]["momentum"] == 0.9


@pytest.mark.parametrize(
    "bad, says",
    [
        (dict(optimizer="Adan"), "Did you mean 'Adam'.*Known: Adam, AdamW, SGD"),
        (dict(schedule="cosin"), "Did you mean 'cosine'.*Known: cosine, constant, step"),
        (dict(schedule=""), "Known: cosine, constant, step"),
        (dict(precision="half"), "Known: fp32, bf16, fp16"),
        *(
            (dict(schedule=s), "'step EPOCHS FACTOR' with two numbers above 0, not")
            for s in ("step 5", "step 5 x", "step 0 0.5", "step 5 -1", "cosine 3", "step 1 2 3")
        ),
        *(
            (dict(weight_decay=x), "weight_decay must be 0 or more")
            for x in (-1, float("nan"), float("inf"))
        ),
        (dict(lr=float("inf")), "lr must be a number above 0, not inf"),
        (dict(lr="0.1"), "lr must be a number above 0, not '0.1'"),
        (dict(epochs=2.0), "epochs must be a whole number above 0, not 2.0"),
        (dict(epochs=True), "epochs must be a whole"),
        (dict(flip=1), "flip must be True or False, not 1"),
        (dict(compile="yes"), "compile must be True or False"),
        (dict(seed=-1), "seed must be a whole number of 0 or more"),
        (dict(accumulate=0), "accumulate must be a whole number above 0"),
        (dict(batch_size=6, accumulate=4), "at least two faces a part, not be 4 with batch_size 6"),
    ],
)
def test_unknown_settings_name_the_known_ones(bad, says):
    with pytest.raises(ValueError, match=says):
        TrainConfig(**bad)


def test_equal_settings_have_one_key():
    assert digest(
        asdict(TrainConfig(gamma=1, ema=0, lr=np.float32(1), seed=np.int64(3)))
    ) == digest(asdict(TrainConfig(gamma=1.0, ema=0.0, lr=1.0, seed=3)))
    assert TrainConfig(batch_size=4, accumulate=2) != TrainConfig(batch_size=4)


def test_the_share_of_masked_faces_is_p(toy, quantiles):
    faces = TrainingFaces(FaceDataset(toy, quantiles=quantiles), PrimaryRegionMask(p=0.25))
    masked = [faces[epoch, i]["masked"] for epoch in range(100) for i in range(20)]
    assert abs(np.mean(masked) - 0.25) < 3 * np.sqrt(0.25 * 0.75 / len(masked))


def test_every_face_once_an_epoch_and_another_order_each_time():
    first, second = (sum(epoch_order(50, 8, epoch, 0), []) for epoch in (0, 1))
    assert sorted(i for _, i in first) == list(range(50)) and [i for _, i in first] != [
        i for _, i in second
    ]
    assert [len(b) for b in epoch_order(9, 4, 0, 0)] == [4, 4], (
        "a last batch of one would break batch normalization"
    )


def test_test_faces_and_shared_people_are_refused(toy, tiny):
    rows = {split: select(toy, split, "A") for split in ("train", "val", "test")}
    with pytest.raises(ValueError, match="rows of the split test where only val"):
        train(tiny, rows["train"], rows["test"], CONFIG)
    with pytest.raises(ValueError, match="rows of the split test where only train"):
        check_split(rows["test"], rows["val"])
    with pytest.raises(ValueError, match="in training and validation both: p0"):
        check_split(rows["train"], rows["val"].assign(identity="p0"))
    with pytest.raises(ValueError, match="in training and validation both: p0"):
        check_split(rows["train"], rows["val"].assign(source_identity="p0"))
    check_split(rows["train"], rows["val"].assign(source_identity="nobody else"))
    with pytest.raises(ValueError, match="val rows hold one class only"):
        check_split(rows["train"], rows["val"].query("label == 1"))


def test_the_chosen_epoch_has_the_best_validation_auc(toy, tiny):
    history, _ = fit(tiny, toy, TrainConfig(epochs=5, batch_size=4, lr=1e-2))
    assert (
        history.chosen.sum() == 1
        and history.val_auc[history.chosen].item() == history.val_auc.max()
    )
    assert history.chosen.to_numpy().nonzero()[0][0] == history.val_auc[::-1].idxmax()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_learns(toy, tiny, device, precision):
    "The fakes of A are brighter, which one convolution can see."
    history, p_fake = fit(
        tiny, toy, TrainConfig(epochs=15, batch_size=4, lr=3e-2, precision=precision), device
    )
    test = select(toy, "test")
    assert (
        p_fake[test.subset == "A"].min() > p_fake[test.subset == "real"].max()
        and history.loss.iloc[-1] < history.loss.iloc[0]
    )


def test_validation_takes_the_parts_of_a_batch(toy, tiny):
    "So that what lets a training fit into the memory lets its validation fit too."
    sizes = []
    tiny.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    train(
        tiny,
        select(toy, "train", "A"),
        select(toy, "val", "A"),
        TrainConfig(epochs=1, batch_size=6, accumulate=3, ema=0),
    )
    assert set(sizes) == {2}


def test_predict_restores_the_mode(toy, tiny):
    tiny.train()
    predict(tiny, FaceDataset(toy))
    assert tiny.training


def test_parts_of_a_batch_add_up_to_it(toy, tiny, quantiles):
    "Without batch normalization, with an uneven last batch and masks."

    def plain():
        detector = again(tiny)
        detector.body[1] = nn.Identity()
        return detector

    config = dict(epochs=3, lr=1e-2, batch_size=7)
    _, whole = fit(
        plain(), toy, TrainConfig(**config), mask=PrimaryRegionMask(), quantiles=quantiles
    )
    _, parts = fit(
        plain(),
        toy,
        TrainConfig(**config, accumulate=2),
        mask=PrimaryRegionMask(),
        quantiles=quantiles,
    )
    assert np.allclose(whole, parts, atol=2e-5) and not np.array_equal(whole, parts)


def test_the_average_is_torchs(tiny):
    ours, theirs = (
        MovingAverage(tiny, 0.9),
        AveragedModel(tiny, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True),
    )
    for _ in range(5):
        tiny(torch.rand(4, 3, 8, 8))
        with torch.no_grad():
            for p in tiny.parameters():
                p.add_(torch.randn_like(p))
        ours.update(), theirs.update_parameters(tiny)
    a, b = ours.module.state_dict(), theirs.module.state_dict()
    assert (
        all(torch.equal(a[k], b[k]) for k in a if a[k].is_floating_point())
        and a["body.1.num_batches_tracked"] == 5
    )
    assert not any(p.requires_grad for p in ours.module.parameters())


class Reads(TorchDispatchMode):
    "Counts how often a value is read from a tensor, which on a GPU makes the host wait."

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function in (
            torch.ops.aten._local_scalar_dense.default,
            torch.ops.aten.nonzero.default,
            torch.ops.aten.equal.default,
        )
        return function(*args, **kwargs or {})


@pytest.mark.parametrize(
    "settings",
    [
        dict(),
        dict(ema=0.0, optimizer="SGD", accumulate=2),
        dict(precision="bf16"),
        dict(precision="fp16"),
    ],
)
def test_no_step_waits_for_the_device(toy, tiny, settings):
    "Three times the steps, as many reads."

    def reads(batch_size):
        with Reads() as mode:
            train(
                again(tiny),
                select(toy, "train", "A"),
                select(toy, "val", "A"),
                TrainConfig(epochs=1, **{"batch_size": batch_size, **settings}),
                RandomMask(p=0.0),
            )
        return mode.count

    assert reads(4) == reads(12)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_of_the_network_only(toy, tiny, precision):
    objective, batch, dtypes = (
        Objective(tiny, precision),
        dict(image=torch.rand(4, 3, 24, 32), label=torch.tensor([0, 1, 0, 1])),
        [],
    )
    tiny.body[0].register_forward_hook(lambda m, i, out: dtypes.append(out.dtype))
    tiny.loss = lambda outputs, batch: (
        dtypes.append(outputs["logit"].dtype) or cross_entropy(outputs["logit"], batch)
    )
    assert objective(batch).dtype == torch.float32 and dtypes == [
        dict(bf16=torch.bfloat16, fp16=torch.float16)[precision],
        torch.float32,
    ]
    history, scores = fit(
        again(tiny), toy, TrainConfig(epochs=15, batch_size=4, lr=3e-2, precision=precision)
    )
    _, full = fit(again(tiny), toy, TrainConfig(epochs=15, batch_size=4, lr=3e-2))
    assert (
        history.val_auc.max() == 1
        and np.abs(scores - full).max() < 0.1
        and not np.array_equal(scores, full)
    )


def test_compiled_it_learns_the_same(toy, tiny, monkeypatch):
    "With the quick back end, which captures the graphs and generates no code."
    monkeypatch.setattr(
        Objective, "compile", lambda self: nn.Module.compile(self, backend="aot_eager")
    )
    config = dict(epochs=2, batch_size=6, lr=1e-2)
    history, scores = fit(tiny, toy, TrainConfig(**config, compile=True))
    plain_history, plain = fit(again(tiny), toy, TrainConfig(**config))
    assert np.allclose(scores, plain, atol=1e-3) and np.allclose(
        history.loss, plain_history.loss, atol=1e-3
    )
    assert torch._dynamo.utils.counters["stats"]["calls_captured"] > 0 and set(
        tiny.state_dict()
    ) == set(again(tiny).state_dict())


def test_a_lack_of_memory_names_what_to_lower(toy, tiny):
    def loss(outputs, batch):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    tiny.loss = loss
    with pytest.raises(
        torch.OutOfMemoryError,
        match=r"batch_size=4, accumulate=1, precision=fp32: raise accumulate .* "
        r"lower batch_size, .* bf16. \(CUDA out of memory",
    ):
        fit(tiny, toy)
    tiny.logit = lambda x: loss(None, None)
    with pytest.raises(
        torch.OutOfMemoryError,
        match="too little memory on the device for batch_size=64: lower batch_size",
    ):
        predict(tiny, FaceDataset(toy))


def test_scores_that_are_no_numbers_stop_it_too(toy, tiny):
    "The last step of an epoch can diverge without its loss being seen."
    logit = tiny.logit
    tiny.logit = lambda x: logit(x) * (1 if tiny.training else float("nan"))
    with pytest.raises(
        FloatingPointError, match="a score of a validation face became nan in epoch 1"
    ):
        fit(tiny, toy, TrainConfig(epochs=1, batch_size=4, ema=0.0))


def test_one_bar_with_loss_and_auc(toy, tiny, monkeypatch, capsys):
    monkeypatch.setattr(prle.core, "_watched", lambda: True)
    fit(tiny, toy, TrainConfig(epochs=3, batch_size=4), desc="a run")
    bar = capsys.readouterr().err
    assert (
        "a run:" in bar
        and "9/9" in bar
        and "loss=" in bar
        and "val_auc=" in bar
        and bar.count("a run:   0%") == 1
    )
    monkeypatch.setattr(prle.core, "_watched", lambda: False)
    fit(tiny, toy, TrainConfig(epochs=1, batch_size=4))
    assert capsys.readouterr().err == ""


def test_a_diverging_run_says_what_to_do(toy, tiny):
    with torch.no_grad():
        tiny.head.bias.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="lower lr than 0.01"):
        fit(tiny, toy)


@pytest.mark.parametrize(
    "field, value",
    [("epochs", 0), ("batch_size", 1), ("lr", 0.0), ("gamma", -1.0), ("ema", 1.0), ("workers", -1)],
)
def test_bad_settings_are_refused(field, value):
    with pytest.raises(ValueError, match=f"{field} must {'lie in' if field == 'ema' else 'be'}"):
        TrainConfig(**{field: value})


def test_a_training_that_goes_on_has_the_maps_it_had(toy, tiny, quantiles, tmp_path):
    "Renewed before the second epoch, as before in the third; stopped between them."
    lower = np.ones((24, 32), np.uint16)
    lower[:12] = 0
    for path in toy.path:
        (tmp_path / "lower" / path).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / "lower" / path), lower)
    write_digests(tmp_path / "lower")

    def renewal(student, epoch):
        torch.rand(3)  # what it draws is its own affair
        return tmp_path / "lower" if epoch == 1 else None

    def stopped(student, epoch):
        if epoch == 2:
            raise KeyboardInterrupt
        return renewal(student, epoch)

    mask = PrimaryRegionMask(p=1.0)
    how = dict(config=TrainConfig(epochs=3, batch_size=4), mask=mask, quantiles=quantiles)
    whole, _ = fit(again(tiny), toy, renewal=renewal, **how)
    with pytest.raises(KeyboardInterrupt):
        fit(again(tiny), toy, renewal=stopped, checkpoint=tmp_path / "c", **how)
    parts, _ = fit(again(tiny), toy, renewal=renewal, checkpoint=tmp_path / "c", **how)
    plain, _ = fit(again(tiny), toy, **how)
    assert parts.loss.tolist() == whole.loss.tolist()
    assert plain.loss[0] == whole.loss[0] and plain.loss[2] != whole.loss[2]
