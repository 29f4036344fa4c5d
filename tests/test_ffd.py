"""FFD: both maps against references, the three supervisions by hand, published counts and weights."""

from functools import partial

import conftest
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from prle.detectors.ffd import (
    RegressionMap,
    TemplateMap,
    cosine_templates,
    ffd,
    map_target,
    mask_loss,
    principal_templates,
    weak_loss,
)
from prle.detectors.registry import (
    cam_grids,
    create_detector,
    cross_entropy,
    list_detectors,
    macs,
    parameter_count,
)
from prle.detectors.xception import published_names, xception

KINDS = ["regression", "template"]


small, meta = partial(conftest.small, "ffd"), partial(conftest.meta, "ffd")


def batch(n=4, size=64):
    torch.manual_seed(1)
    label = torch.arange(n) % 2
    return dict(
        image=torch.rand(n, 3, size, size), label=label, mask=torch.rand(n, 1, size, size).round()
    )


# ---- published sizes


def test_is_registered():
    assert list_detectors("ffd") == ["ffd"]
    assert create_detector("ffd", width=1 / 8, supervision="weak", map="template").config == dict(
        name="ffd", width=1 / 8, supervision="weak", map="template"
    )


@pytest.mark.parametrize(
    "kind, count, gmacs", [("regression", 20_818_330, 8.3580), ("template", 21_890_684, 8.6736)]
)
def test_published_counts(kind, count, gmacs):
    model = meta(map=kind)
    assert parameter_count(model) == count
    assert parameter_count(model.map) == count - 20_811_050  # what FFD adds to a two-way Xception
    assert macs(model, 299) == pytest.approx(gmacs * 1e9, rel=0.005)


def test_published_macs_at_256():
    assert macs(meta(), 256) == pytest.approx(5.9526e9, rel=0.005)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size, cells", [(64, 4), (128, 8), (224, 14), (256, 16), (299, 19)])
def test_any_size(kind, size, cells):
    outputs = meta(width=1 / 8, map=kind).outputs(torch.empty(2, 3, size, size, device="meta"))
    assert outputs["logit"].shape == (2,) and outputs["map"].shape == (2, 1, cells, cells)


def test_cam_layers_are_xceptions():
    with torch.device("meta"):
        plain = xception(width=1 / 8)
    assert meta(width=1 / 8).cam_layers == plain.cam_layers
    assert cam_grids(meta(width=1 / 8), 256) == cam_grids(plain, 256)


@pytest.mark.parametrize(
    "options, says",
    [
        (dict(supervision="masks"), "did you mean 'mask'"),
        (dict(map="templates"), "did you mean 'template'"),
    ],
)
def test_unknown_options(options, says):
    with pytest.raises(ValueError, match="(?i)" + says):
        ffd(width=1 / 8, **options)


# ---- the map


@torch.no_grad()
def test_features_are_multiplied_behind_block_7():
    model, x = small().eval(), torch.rand(2, 3, 96, 96)
    b = model.body
    X = b.block7(
        b.block6(
            b.block5(b.block4(b.block3(b.block2(b.block1(b.stem2(b.stem1((x - 0.5) / 0.5)))))))
        )
    )
    A = torch.sigmoid(model.map[0](X))
    y = b.tail(b.block12(b.block11(b.block10(b.block9(b.block8(A * X))))))
    two = model.fc(y.mean((2, 3)))
    outputs = model.outputs(x)
    assert torch.allclose(outputs["map"], A, atol=1e-6) and torch.allclose(
        outputs["logit"], two[:, 1] - two[:, 0], atol=1e-5
    )


@torch.no_grad()
def test_a_map_of_ones_is_plain_xception():
    model, plain = small().eval(), xception(width=1 / 8).eval()
    model.map = type(
        "Ones", (nn.Module,), dict(forward=lambda self, X: torch.ones_like(X[:, :1]))
    )()
    plain.body.load_state_dict(model.body.state_dict())
    plain.fc.weight.copy_(model.fc.weight[1:] - model.fc.weight[:1])
    plain.fc.bias.copy_(model.fc.bias[1:] - model.fc.bias[:1])
    x = torch.rand(2, 3, 64, 64)
    assert torch.allclose(model(x), plain(x), atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_the_map_starts_at_one_half(kind):
    A = small(map=kind).outputs(torch.rand(4, 3, 128, 128))["map"]
    assert (A - 0.5).abs().max() < 0.1


@torch.no_grad()
def test_regression_map_by_hand():
    torch.manual_seed(0)
    m, X = RegressionMap(6), torch.randn(2, 6, 5, 5)
    depth, point = m[0].conv1.weight, m[0].pointwise.weight
    padded = F.pad(X, (1, 1, 1, 1))
    Y = sum(
        padded[:, :, i : i + 5, j : j + 5] * depth[:, 0, i, j].view(1, -1, 1, 1)
        for i in range(3)
        for j in range(3)
    )
    assert torch.allclose(
        m(X), 1 / (1 + torch.exp(-(Y * point.view(1, -1, 1, 1)).sum(1, keepdim=True))), atol=1e-6
    )


@torch.no_grad()
def test_template_map_is_a_weighted_sum_without_bounds():
    torch.manual_seed(0)
    m, X = TemplateMap(16, 8).eval(), torch.randn(3, 16, 19, 19)
    nn.init.normal_(m.fc.weight, std=5)
    weights = m.fc(F.relu(m.block(X)).mean((2, 3)))
    expected = torch.stack([sum(w * t for w, t in zip(face, m.templates)) for face in weights])
    A = m(X)
    assert torch.allclose(A[:, 0], expected, atol=1e-4) and (A.amin() < 0 or A.amax() > 1)


def test_templates_are_data_that_travels_with_the_weights():
    model = small(map="template")
    assert "map.templates" in model.state_dict() and not any(
        "templates" in n for n, _ in model.named_parameters()
    )
    model.map.templates.copy_(principal_templates(torch.rand(12, 1, 32, 32)))
    other = small(map="template")
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.map.templates, model.map.templates)


def test_cosine_templates():
    t = cosine_templates().flatten(1)
    assert (t[0] == 1).all() and t.abs().max() <= 1
    assert (
        torch.allclose(t @ t.T, (t @ t.T).diag().diag(), atol=1e-3)
        and torch.linalg.matrix_rank(t) == 10
    )


def test_principal_templates_span_what_the_masks_are_made_of():
    torch.manual_seed(0)
    parts = torch.rand(6, 1, 19, 19)
    masks = torch.einsum("nk,kcij->ncij", torch.rand(30, 6), parts)
    t = principal_templates(masks)
    assert t.shape == (10, 19, 19) and torch.allclose(t[0], masks.mean(0)[0], atol=1e-5)
    rows = t[1:].flatten(1)
    assert torch.allclose(rows @ rows.T, torch.eye(9), atol=1e-4)
    rest = (masks - masks.mean(0)).flatten(1)
    assert (rest - rest @ rows[:6].T @ rows[:6]).abs().max() < 1e-4
    with pytest.raises(ValueError, match="at least ten masks, not 9"):
        principal_templates(masks[:9])


# ---- the losses


def test_target_is_the_share_of_a_cell_and_zero_for_reals():
    mask = torch.zeros(2, 1, 6, 6)
    mask[:, :, :3, :1] = 1
    mask[:, :, 5, 5] = 0.5
    target = map_target(mask, torch.tensor([1, 0]), (2, 2))
    assert (
        torch.allclose(target[0, 0], torch.tensor([[3 / 9, 0], [0, 0.5 / 9]]))
        and not target[1].any()
    )


def test_target_at_grids_that_do_not_divide():
    mask = torch.ones(1, 1, 299, 299)
    assert torch.allclose(map_target(mask, torch.tensor([1]), (19, 19)), torch.ones(1, 1, 19, 19))


def test_mask_loss_by_hand():
    A = torch.tensor([[[[0.2, 0.4]]], [[[0.6, 1.0]]]])
    mask = torch.tensor([[[[1.0, 0.0]]], [[[1.0, 1.0]]]])
    assert torch.isclose(
        mask_loss(A, mask, torch.tensor([1, 0])), torch.tensor((0.8 + 0.4 + 0.6 + 1.0) / 4)
    )


def test_a_fake_without_a_mask_does_not_count():
    model, b = small(), batch() | dict(mask_known=torch.tensor([True, False, True, True]))
    outputs, others = model.outputs(b["image"]), [0, 2, 3]
    expected = mask_loss(outputs["map"][others], b["mask"][others], b["label"][others])
    assert torch.isclose(model.loss(outputs, b) - cross_entropy(outputs["logit"], b), expected)
    assert mask_loss(outputs["map"], b["mask"], b["label"], torch.zeros(4, dtype=torch.bool)) == 0


def test_weak_loss_by_hand():
    A = torch.tensor([[[[0.2, 0.4]]], [[[0.6, 1.0]]], [[[-0.2, 0.1]]]])
    assert torch.isclose(
        weak_loss(A, torch.tensor([1, 1, 0])), torch.tensor((0.35 + 0.25 + 0.15) / 3)
    )


@pytest.mark.parametrize(
    "supervision, extra",
    [
        ("mask", lambda A, b: mask_loss(A, b["mask"], b["label"])),
        ("weak", lambda A, b: weak_loss(A, b["label"])),
        ("none", lambda A, b: 0),
    ],
)
def test_loss_is_cross_entropy_plus_the_maps(supervision, extra):
    model, b = small(supervision=supervision), batch()
    b["weight"] = torch.tensor([1, 0.5, 0, 2])
    outputs = model.outputs(b["image"])
    assert torch.isclose(
        model.loss(outputs, b), cross_entropy(outputs["logit"], b) + extra(outputs["map"], b)
    )


def test_only_full_supervision_needs_masks():
    b = batch()
    without = {k: v for k, v in b.items() if k != "mask"}
    for supervision in ("weak", "none"):
        model = small(supervision=supervision)
        assert model.needs == () and model.loss(model.outputs(b["image"]), without).isfinite()
    assert small().needs == ("mask",)
    with pytest.raises(KeyError, match="mask"):
        small().loss(small().outputs(b["image"]), without)


def test_a_reals_mask_is_not_looked_at():
    model, b = small(), batch()
    outputs, first = model.outputs(b["image"]), None
    for value in (0.0, 1.0):
        b["mask"][b["label"] == 0] = value
        loss = model.loss(outputs, b)
        assert first is None or loss == first
        first = loss


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("supervision", ["mask", "weak", "none"])
def test_gradients_reach_every_parameter(kind, supervision):
    model, b = small(map=kind, supervision=supervision), batch(6)
    model.loss(model.outputs(b["image"]), b).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_the_template_map_is_finite_on_flat_faces_and_in_bfloat16():
    model, b = small(map="template"), batch(2)
    for faces in (torch.zeros(2, 3, 64, 64), torch.full((2, 3, 64, 64), 0.5)):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model.loss(model.outputs(faces), b)
        loss.backward()
        assert loss.isfinite() and all(p.grad.isfinite().all() for p in model.parameters())


def test_the_map_learns_the_mask():
    torch.manual_seed(0)
    model, b = small(), batch(8, 64)
    b["mask"] = torch.zeros(8, 1, 64, 64)
    b["mask"][:, :, 16:48, 16:48] = 1
    b["image"][1::2, :, 16:48, 16:48] *= 0.3
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(40):
        loss = model.loss(outputs := model.outputs(b["image"]), b)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    fake, real = outputs["map"][1::2], outputs["map"][::2]
    assert real.mean() < 0.15 and fake[:, :, 1:3, 1:3].mean() > 0.7 and fake[:, :, 0].mean() < 0.3


# ---- published weights


def test_pretrained_loads_the_body_alone(monkeypatch):
    reference, asked = timm.create_model("legacy_xception"), []
    monkeypatch.setattr(
        timm, "create_model", lambda name, **options: asked.append((name, options)) or reference
    )
    torch.manual_seed(0)
    model = create_detector("ffd", pretrained=True)
    assert asked == [("legacy_xception.tf_in1k", dict(pretrained=True))]
    expected, own = published_names(reference.state_dict()), model.body.state_dict()
    assert expected.keys() == own.keys() and all(
        torch.equal(own[k], v) for k, v in expected.items()
    )
    assert model.fc.weight.shape == (2, 2048) and model.fc.weight.std() < 0.05


def test_recipe_is_the_codes():
    r = small().recipe
    assert (r.optimizer, r.lr, r.weight_decay, r.schedule, r.batch_size, r.size) == (
        "Adam",
        1e-4,
        1e-3,
        "constant",
        30,
        299,
    )
