"""Capsule-Forensics: published sizes, grouped capsules against separate ones, routing by hand, the frozen extractor."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from prle.detectors import capsule as room
from prle.detectors.capsule import (
    capsule,
    capsule_v2,
    component_loss,
    extractor,
    mean_probability,
    route,
    squash,
    statistics,
)
from prle.detectors.registry import cam_grids, card
from prle.localization import attention_maps

BOTH = pytest.mark.parametrize("build, n", [(capsule, 3), (capsule_v2, 10)])


def tiny(build=capsule, **options):
    torch.manual_seed(0)
    return build(width=1 / 8, **options)


def used(build, **options):
    "A network in evaluation mode whose batch norms are no longer nearly the identity."
    model = tiny(build, **options).eval()
    for m in model.modules():
        if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)):
            m.running_mean.normal_(0, 0.01)
            m.running_var.uniform_(0.005, 0.02)
            nn.init.normal_(m.bias, 0, 0.1)
    return model


# ---- published sizes


@pytest.mark.parametrize(
    "name, size, frozen, parameters, gmacs",
    [
        ("capsule", 128, True, 471_321, 3.7725),
        ("capsule", 256, True, 471_321, 15.0901),
        ("capsule", 300, True, 471_321, 20.7055),
        ("capsule", 256, False, 2_796_889, 15.0901),
        ("capsule_v2", 256, True, 1_571_070, 16.2131),
        ("capsule_v2", 300, True, 1_571_070, 22.2069),
        ("capsule_v2", 256, False, 3_896_638, 16.2131),
    ],
)
def test_published_size(name, size, frozen, parameters, gmacs):
    row = card(name, size, frozen=frozen)
    assert row["parameters"] == parameters and row["gmacs"] == pytest.approx(gmacs, rel=0.005)


@BOTH
def test_width_keeps_the_capsules(build, n):
    model = tiny(build)
    assert model.routing.shape == (2, n, 4, 8) and model.primary.conv2.out_channels == 16 * n
    assert model.primary.conv1.in_channels == 32 and model.primary.conv1.out_channels == 8 * n


def test_originals_initialization():
    p = tiny(capsule_v2).primary
    assert all(0.018 < getattr(p, f"conv{i}").weight.std() < 0.022 for i in (1, 2, 3, 4))
    assert 0.015 < torch.cat([p.bn1.weight, p.bn2.weight]).std() < 0.025 and not p.bn2.bias.any()


# ---- against the method written out


def separate_capsules(model, n):
    "The primary capsules as n networks of their own, with the same weights."
    p, nets = model.primary, []
    first = p.conv1.out_channels // n
    for i in range(n):
        layers = [
            nn.Conv2d(p.conv1.in_channels, first, 3, padding=1),
            nn.BatchNorm2d(first),
            nn.Conv2d(first, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.Conv1d(2, 8, 5, stride=2, padding=2),
            nn.BatchNorm1d(8),
            nn.Conv1d(8, 1, 3, padding=1),
            nn.BatchNorm1d(1),
        ]
        for layer, grouped in zip(
            layers, (p.conv1, p.bn1, p.conv2, p.bn2, p.conv3, p.bn3, p.conv4, p.bn4)
        ):
            parts = {k: v.chunk(n)[i] if v.ndim else v for k, v in grouped.state_dict().items()}
            layer.load_state_dict(parts)
        nets.append(nn.ModuleList(layers).eval())
    return nets


def literal_squash(v):
    return v.norm() ** 2 / (1 + v.norm() ** 2) * v / v.norm()


def literal_score(model, features, n):
    "One image through capsules and routing, one capsule, output and iteration after the other."
    vectors = []
    for conv1, bn1, conv2, bn2, conv3, bn3, conv4, bn4 in separate_capsules(model, n):
        maps = bn2(conv2(bn1(conv1(features[None])).relu())).relu()[0].flatten(1)
        two = torch.stack([maps.mean(1), maps.std(1)])[None]
        vectors.append(bn4(conv4(bn3(conv3(two)))).flatten())
    u = torch.stack(vectors)  # (n, 8)
    u = torch.stack([literal_squash(u[:, k]) for k in range(8)], dim=1)
    outputs = []
    for j in (0, 1):
        votes = torch.stack([model.routing[j, i] @ u[i] for i in range(n)])  # (n, 4)
        v = literal_squash(votes.mean(0))
        c = (votes * v).softmax(0)
        outputs.append(literal_squash((c * votes).sum(0)))
    return torch.stack(outputs).softmax(0)[1].mean()


@BOTH
def test_network_equals_separate_capsules(build, n):
    model, x = used(build), torch.rand(3, 3, 64, 64)
    with torch.no_grad():
        features = model.features((x - model.mean) / model.std)
        expected = torch.stack([literal_score(model, f, n) for f in features])
        assert torch.allclose(model(x).sigmoid(), expected, atol=1e-5)
    assert expected.std() > 1e-4  # and not because all are alike


@BOTH
def test_capsules_keep_their_own_batch_statistics(build, n):
    "In training a group's batch norm sees its capsule only, as it would alone."
    model, x = tiny(build).train(), torch.randn(4, 32, 8, 8)
    with torch.no_grad():
        model.primary(x)
        conv, norm = model.primary.conv2, model.primary.bn2
        grouped = F.relu(
            F.batch_norm(
                model.primary.conv1(x),
                None,
                None,
                model.primary.bn1.weight,
                model.primary.bn1.bias,
                training=True,
            )
        )
        one = F.conv2d(grouped[:, -8:], conv.weight[-16:], conv.bias[-16:], padding=1)
    assert torch.allclose(norm.running_mean[-16:], 0.1 * one.mean((0, 2, 3)), atol=1e-6)


# ---- parts


def test_squash_by_hand():
    v = torch.tensor([[3.0, 4.0], [0.1, 0.0]])
    assert torch.allclose(
        squash(v, 1), torch.tensor([[15 / 26, 20 / 26], [0.01 / 1.01, 0.0]]), atol=1e-5
    )
    assert torch.allclose(squash(v, 0), squash(v.T, 1).T)
    assert squash(1e3 * torch.randn(50, 4), 1).norm(dim=1).max() <= 1


def test_squash_of_nothing_has_a_gradient():
    v = torch.zeros(2, 4, requires_grad=True)
    squash(v, 1).sum().backward()
    assert v.grad.isfinite().all()


def test_statistics_are_torchs():
    maps = torch.rand(2, 5, 4, 6)
    assert torch.allclose(
        statistics(maps), torch.stack([maps.mean((2, 3)), maps.std((2, 3))], 2), atol=1e-6
    )
    blank = torch.ones(1, 1, 4, 4, requires_grad=True)
    statistics(blank).sum().backward()
    assert torch.allclose(blank.grad, torch.tensor(1 / 16))  # the mean's share alone


def test_route_by_hand():
    votes = torch.tensor([[1.0, 0, 0, 0], [1.0, 0, 0, 0], [-1.0, 0, 0, 0]]).expand(1, 2, 3, 4)
    first = (1 / 9) / (10 / 9)  # |v| of the mean vote 1/3 is v^2 / (1 + v^2)
    e = torch.tensor([first, first, -first]).softmax(0)
    total = (e[0] + e[1] - e[2]).item()
    outputs, couplings = route(votes)
    assert torch.allclose(couplings[0, 0, :, 0], e) and torch.allclose(
        couplings[0, 1, :, 1:], torch.tensor(1 / 3)
    )
    assert (
        outputs[0, 0, 0].item() == pytest.approx(total**2 / (1 + total**2), abs=1e-5)
        and not outputs[0, 0, 1:].any()
    )


def test_route_treats_capsules_images_and_outputs_alike():
    votes = torch.randn(4, 2, 5, 4)
    outputs, couplings = route(votes)
    order = torch.randperm(5)
    assert torch.allclose(route(votes[:, :, order])[0], outputs, atol=1e-6)
    assert torch.allclose(route(votes.flip(1))[0], outputs.flip(1)) and torch.allclose(
        route(votes[2:3])[0], outputs[2:3]
    )
    assert torch.allclose(couplings.sum(2), torch.ones(4, 2, 4)) and outputs.norm(dim=2).max() < 1


def test_more_agreement_with_more_iterations():
    votes = torch.tensor([[2.0, 1, 0, 0], [2.0, 1, 0, 0], [-2.0, 1, 0, 0]]).expand(1, 2, 3, 4)
    heard = [route(votes, k)[1][0, 0, 2, 0].item() for k in (1, 2, 3)]
    assert heard[0] == pytest.approx(1 / 3) and heard[0] > heard[1] > heard[2]


# ---- score and losses


@BOTH
def test_logit_is_the_log_odds_of_the_score(build, n):
    model, x = used(build), torch.rand(4, 3, 64, 64)
    with torch.no_grad():
        out = model.outputs(x)
    assert torch.allclose(out["logit"].sigmoid(), out["two"].softmax(1)[:, 1].mean(1))
    assert out["two"].shape == (4, 2, 4) and out["logit"].abs().max() < 1


def test_no_score_leaves_its_bounds():
    two = torch.randn(10_000, 2, 4)
    two = two / two.norm(dim=2, keepdim=True)  # vectors of length 1, the longest there are
    p = mean_probability(two)
    assert 0.268 < p.min() < 0.35 and 0.65 < p.max() < 0.732


def test_losses_by_hand():
    real, fake = torch.tensor([0.1, -0.2, 0.3, 0.0]), torch.tensor([0.5, 0.2, -0.1, 0.0])
    out = dict(two=torch.stack([real, fake])[None].repeat(2, 1, 1))
    batch = dict(label=torch.tensor([1, 0]))

    def plain(d):
        return F.softplus(-d).sum() + F.softplus(d).sum()  # a fake and a real with the same outputs

    d = fake - real
    once, twice = (
        plain(d) / 2,
        plain((d / 2).tanh()) / 2,
    )  # softmax's difference of two is tanh of half theirs
    assert torch.isclose(tiny(capsule_v2).loss(out, batch), once) and torch.isclose(
        tiny(capsule).loss(out, batch), twice
    )
    batch["weight"] = torch.tensor([1.0, 0.0])
    assert torch.isclose(tiny(capsule_v2).loss(out, batch), F.softplus(-d).sum() / 2)


def test_least_losses():
    "Descending on any two vectors shorter than 1 ends at the bounds that the notebook derives."
    torch.manual_seed(0)
    for double, least in (
        (False, 4 * F.softplus(torch.tensor(-1.0))),
        (True, 4 * F.softplus(torch.tensor(-0.5).tanh())),
    ):
        free = torch.randn(1, 2, 4, requires_grad=True)
        optimizer = torch.optim.Adam([free], lr=0.1)
        for _ in range(300):
            two = F.normalize(free, dim=2)
            loss = component_loss(two.softmax(1) if double else two, dict(label=torch.tensor([1])))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert loss.item() == pytest.approx(least.item(), abs=1e-3)


# ---- noise and dropout in training


@BOTH
def test_noise_is_drawn_once_a_step_from_the_global_generator(build, n):
    model = tiny(build, dropout=0.0).train()
    u = (
        torch.eye(8).repeat_interleave(n, 0).unflatten(0, (8, n))
    )  # image k reads column k of every matrix
    torch.manual_seed(5)
    with_noise = model.votes(u).permute(1, 2, 3, 0) - model.routing
    torch.manual_seed(5)
    assert torch.equal(model.votes(u).permute(1, 2, 3, 0) - model.routing, with_noise)
    assert 0.008 < with_noise.std() < 0.012 and abs(with_noise.mean()) < 0.003
    assert torch.equal(*model.votes(u[:1].repeat(2, 1, 1)))  # two images, one draw
    assert torch.allclose(model.eval().votes(u).permute(1, 2, 3, 0), model.routing)


def test_dropped_votes_are_zero_and_the_others_are_not_scaled():
    model, u = tiny(capsule_v2, noise=0.0), torch.randn(200, 10, 8)
    whole = model.eval().votes(u)
    torch.manual_seed(5)
    some = model.train().votes(u)
    zero = some == 0
    assert 0.045 < zero.float().mean() < 0.055 and torch.equal(some[~zero], whole[~zero])
    assert tiny(capsule).dropout == 0 and tiny(capsule).noise == 0.01


@BOTH
def test_without_noise_and_dropout_training_draws_nothing(build, n):
    model, x = tiny(build, noise=0.0, dropout=0.0).train(), torch.rand(2, 3, 64, 64)
    assert torch.equal(model(x), model(x))


# ---- the extractor


@pytest.fixture
def hub(monkeypatch):
    "Random weights in place of the hub's, under timm's names; returns timm's own layers with these weights."
    with torch.device("meta"):
        theirs = timm.create_model(room.CAPSULE_WEIGHTS.source.split(".")[0]).features
    theirs = theirs.to_empty(device="cpu")[:19]
    torch.manual_seed(1)
    for p in theirs.parameters():
        nn.init.normal_(p, 0, 0.02)
    state = {f"features.{k}": v for k, v in theirs.state_dict().items()} | {
        "features.19.bias": torch.zeros(512),
        "head.fc.bias": torch.zeros(1000),
    }
    monkeypatch.setattr(
        room,
        "imagenet_state",
        lambda source: state if source == "vgg19.tv_in1k" else pytest.fail(source),
    )
    return theirs


def test_pretrained_extractor_equals_timms(hub):
    ours, x = capsule(pretrained=True).features, torch.randn(1, 3, 48, 48)
    assert [type(a).__name__ for a in ours] == [type(b).__name__ for b in hub]
    with torch.no_grad():
        assert torch.allclose(ours(x), hub(x), atol=1e-5) and ours(x).any()


def test_pretrained_means_frozen_unless_said(hub):
    assert capsule(pretrained=True).frozen and not capsule(pretrained=True, frozen=False).frozen
    assert not tiny().frozen and tiny(frozen=True).frozen


def test_frozen_extractor_stays_in_evaluation_mode_and_as_it_is():
    model = tiny(frozen=True).train()
    assert not any(m.training for m in model.features.modules()) and model.primary.bn1.training
    before = [p.clone() for p in model.features.parameters()]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    model.loss(model.outputs(torch.rand(4, 3, 64, 64)), dict(label=torch.arange(4) % 2)).backward()
    optimizer.step()
    assert all(
        p.grad is None and torch.equal(p, b) for p, b in zip(model.features.parameters(), before)
    )
    assert all(p.grad is not None for p in [model.routing, *model.primary.parameters()])
    assert tiny(frozen=False).train().features.training


@pytest.mark.parametrize("layer", ["features.17", "features.18", "primary.conv2"])
def test_a_frozen_extractor_can_still_be_explained(layer):
    model = used(capsule, frozen=True)
    maps = attention_maps(model, model.get_submodule(layer), torch.rand(2, 3, 64, 64))
    assert maps.shape == (2, 64, 64) and maps.amax() > 0.9


# ---- odd faces


@pytest.mark.parametrize("level", [0.0, 0.5])
@BOTH
def test_blank_faces_and_a_batch_of_one_are_finite(build, n, level):
    model = tiny(build).train()
    loss = model.loss(
        model.outputs(torch.full((1, 3, 64, 64), level)), dict(label=torch.tensor([1]))
    )
    loss.backward()
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in model.parameters())


def test_faces_too_small_for_statistics_are_refused():
    model = tiny().eval()
    with torch.no_grad():
        assert model(torch.rand(1, 3, 16, 16)).isfinite()
    with pytest.raises(ValueError, match=r"at least 16 pixels, not 64 x 15"):
        model(torch.rand(1, 3, 15, 64))


@pytest.mark.parametrize("size, cells", [(64, 8), (128, 16), (256, 32), (299, 37)])
def test_cam_layer(size, cells):
    model = tiny()
    assert model.cam_name(size) == "primary.conv2" and cam_grids(model, size) == {
        "primary.conv2": cells,
        "features.17": size // 4,
    }


def test_extractor_has_published_indices():
    convolutions = [i for i, layer in enumerate(extractor(1 / 8)) if isinstance(layer, nn.Conv2d)]
    assert convolutions == [0, 2, 5, 7, 10, 12, 14, 16]
