"""RECCE: decoder, graph against a loop over cells, guided attention, noise, the three losses, published size."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import randomise_batch_norm

from prle.detectors.recce import (
    RECCE,
    GuidedAttention,
    Neighbours,
    double,
    mean_over,
    metric_loss,
    recce,
)
from prle.detectors.registry import card, create_detector, macs, parameter_count
from prle.detectors.xception import Block


@pytest.fixture
def model():
    torch.manual_seed(0)
    return recce(width=1 / 8)


def taps(model, *names):
    "What goes into and comes out of sub-modules, call by call."
    seen = {name: [] for name in names}
    for name in names:
        model.get_submodule(name).register_forward_hook(
            lambda m, args, out, name=name: seen[name].append((args, out))
        )
    return seen


# ---- parts


@pytest.mark.parametrize("size, grid", [(64, 4), (128, 8), (225, 14), (256, 16), (299, 19)])
def test_grids(model, size, grid):
    seen = taps(model.eval(), "decoder", "reasoning")
    with torch.no_grad():
        out = model.outputs(torch.rand(1, 3, size, size))
    (((e, _), (d2, d4, face)),) = seen["decoder"]
    (((a, *_), _),) = seen["reasoning"]
    edges = [x.shape[-1] for x in (e, d2, d4, a, face)]
    assert edges == [grid, 2 * grid, 4 * grid, grid, size] and out["face"].shape == (
        1,
        3,
        size,
        size,
    )


def test_faces_need_not_be_square(model):
    out = model.eval().outputs(torch.rand(2, 3, 64, 100))
    assert out["error"].shape == (2, 3, 64, 100) and out["logit"].isfinite().all()


def test_decoder_is_the_published_one():
    with torch.device("meta"):
        decoder = create_detector("recce").decoder
    assert parameter_count(decoder) == 496_856
    assert [type(m) for m in decoder.children()] == [type(double(1, 1)), Block] * 2 + [
        type(double(1, 1)),
        torch.nn.Conv2d,
    ]
    assert decoder.double1[0].mode == "nearest" and decoder.paint.weight.shape == (3, 64, 1, 1)


def test_the_painting_spans_the_faces_range(model):
    face = model.train().outputs(torch.rand(8, 3, 64, 64))["face"]
    assert (
        face.abs().max() <= 1 and 0.05 < face.std() < 0.9
    )  # neither flat nor black and white at the start


def one_by_one(near, cells, a, fine):
    "The graph as it is described: a face, a cell and a neighbour at a time."
    ratio, result = near.ratio, torch.zeros_like(a)
    linear = torch.cat([near.score_cell.weight.flatten(), near.score_fine.weight.flatten()])
    first, second = near.embedding[0].weight.flatten(1), near.embedding[2].weight.flatten(1)
    for i in range(len(a)):
        for r in range(a.shape[2]):
            for c in range(a.shape[3]):
                around = [
                    fine[i, :, ratio * r + y, ratio * c + x]
                    for y in range(ratio)
                    for x in range(ratio)
                ]
                around = [second @ (first @ v).relu() for v in around]
                weight = (
                    torch.stack([linear @ torch.cat([a[i, :, r, c], b]) for b in around])
                    .relu()
                    .softmax(0)
                )
                gate = 1 - (near.gate.weight.flatten(1) @ cells[i, :, r, c]).sigmoid()
                result[i, :, r, c] = gate * sum(w * b for w, b in zip(weight, around))
    return result


@pytest.mark.parametrize(
    "ratio, n, grid", [(2, 1, (4, 4)), (4, 1, (1, 1)), (4, 3, (4, 4)), (2, 2, (5, 3))]
)
def test_graph_equals_a_loop_over_cells(ratio, n, grid):
    torch.manual_seed(ratio)
    near = Neighbours(7, 5, 6, ratio)
    cells, a = torch.randn(n, 7, *grid), torch.randn(n, 6, *grid)
    fine = torch.randn(n, 5, ratio * grid[0], ratio * grid[1])
    with torch.no_grad():
        assert torch.allclose(near(cells, a, fine), one_by_one(near, cells, a, fine), atol=1e-5)


def test_a_cell_takes_in_what_covers_its_place_and_no_more():
    near = Neighbours(7, 5, 6, 4)
    cells, a, fine = (
        torch.randn(1, 7, 3, 3),
        torch.randn(1, 6, 3, 3),
        torch.randn(1, 5, 12, 12, requires_grad=True),
    )
    near(cells, a, fine)[0, :, 1, 2].sum().backward()
    touched = fine.grad[0].abs().sum(0) > 0
    assert touched[4:8, 8:12].all() and touched.sum() == 16


def test_graph_adds_to_the_cells(model):
    model.eval()
    torch.nn.init.zeros_(model.reasoning.back[2].weight)
    x = torch.randn(2, 88, 4, 4)
    assert torch.equal(model.reasoning(x, torch.randn(2, 32, 8, 8), torch.randn(2, 16, 16, 16)), x)


def test_guided_attention_by_hand():
    guided = GuidedAttention(4, dropout=0.0).eval()
    for weight in (guided.look[0].weight, guided.look[2].weight):
        torch.nn.init.ones_(weight)
    x, error = torch.randn(1, 4, 3, 3), torch.full((1, 3, 48, 48), 0.01)
    places = torch.tensor([[4, 6, 4], [6, 9, 6], [4, 6, 4]])  # of a 3x3 filter that lie on the map
    weight = (3 * 3 * 0.01 * places).sigmoid()  # three equal filters over three channels
    expected = weight * guided.extra(x) + x
    assert torch.allclose(guided(x, error), expected, atol=1e-5)


@pytest.mark.parametrize("seed", range(20))
def test_guided_attention_is_never_dead(seed):
    torch.manual_seed(seed)
    guided = GuidedAttention(8, 0.2)
    guided(torch.randn(2, 8, 4, 4), torch.rand(2, 3, 64, 64)).square().sum().backward()
    assert all(p.grad.any() for p in guided.look.parameters())


@torch.no_grad()
def test_logit_step_by_step(model):
    "Decoder on block 4, graph on block 7, attention on block 8, written out; the parts have tests of their own."
    model, z = randomise_batch_norm(model), torch.rand(2, 3, 64, 64) * 2 - 1
    v = model.body.stem2(model.body.stem1(z))
    for i in range(1, 13):
        v = model.body.get_submodule(f"block{i}")(v)
        if i == 4:
            d2, d4, face = model.decoder(v, (64, 64))
        if i == 7:
            v = model.reasoning(v, d2, d4)
        if i == 8:
            v = model.guided(v, (z - face).abs())
    features = model.body.tail(v).mean((2, 3))
    seen, out = taps(model, "fc"), model.compute(z)
    assert (seen["fc"][0][0][0] - features).abs().max() < 1e-5 * features.max() and torch.allclose(
        out["logit"], model.fc(features).squeeze(1), rtol=1e-4
    )
    assert torch.allclose(out["face"], face, atol=1e-6) and torch.allclose(
        out["error"], (z - face).abs(), atol=1e-6
    )


# ---- what happens in training only


@pytest.mark.parametrize("sigma", [1e-6, 0.1])
def test_noise_on_half_of_the_faces(sigma):
    torch.manual_seed(0)
    x = torch.zeros(2000, 3, 8, 8)
    noisy = RECCE(1 / 8, noise=sigma).add_noise(x)
    touched = (noisy != 0).flatten(1).any(1)
    assert touched.float().mean() == pytest.approx(0.5, abs=0.05)
    assert (
        noisy[touched].std() == pytest.approx(sigma, rel=0.02)
        and noisy[touched].mean().abs() < sigma / 50
    )
    assert (x == 0).all()


def test_noise_stays_in_the_faces_range():
    model = RECCE(1 / 8, noise=5.0)
    assert model.add_noise(torch.rand(8, 3, 16, 16) * 2 - 1).abs().max() == 1


def test_the_noisy_face_goes_in_and_the_clean_one_is_compared():
    torch.manual_seed(0)
    model, x = recce(width=1 / 8, noise=0.5), torch.rand(8, 3, 64, 64)
    seen = taps(model, "body.conv1", "guided")
    out = model.train().outputs(x)
    entered, clean = seen["body.conv1"][0][0][0], x * 2 - 1
    assert not torch.equal(entered, clean)
    assert (
        torch.allclose(out["error"], (clean - out["face"]).abs())
        and seen["guided"][0][0][1] is out["error"]
    )
    model.eval().outputs(x)
    assert torch.equal(seen["body.conv1"][1][0][0], clean)


def test_same_seed_same_result_and_none_in_evaluation(model):
    x = torch.rand(4, 3, 64, 64)

    def run(seed, train=True):
        torch.manual_seed(seed)
        return copy.deepcopy(model).train(train)(x)

    assert torch.equal(run(1), run(1)) and not torch.equal(run(1), run(2))
    assert torch.equal(run(1, train=False), run(2, train=False))


def test_dropout_of_zero_and_no_noise_leave_no_chance():
    torch.manual_seed(0)
    model = recce(width=1 / 8, dropout=0.0, noise=0.0).train()
    x = torch.rand(4, 3, 64, 64)
    assert torch.equal(model(x), model(x))


def test_dropout_has_four_places(model):
    rates = [
        m.p for m in recce(width=1 / 8, dropout=0.3).modules() if isinstance(m, torch.nn.Dropout)
    ]
    assert rates == [0.3] * 3  # one module serves E and the head
    seen = taps(model.train(), "drop")
    model(torch.rand(2, 3, 64, 64))
    (first, _), (second, _) = seen["drop"]
    assert first[0].shape == (2, 88, 4, 4) and second[0].shape == (2, 256)


# ---- losses


def test_painting_counts_reals_only(model):
    error = torch.rand(4, 3, 5, 5, requires_grad=True)
    base = dict(logit=torch.zeros(4), **{k: torch.eye(4) for k in ("e", "d2", "d4")})
    label = torch.tensor([0, 1, 0, 1])
    loss, none = (
        model.loss(dict(base, error=error), dict(label=label)),
        model.loss(dict(base, error=error * 0), dict(label=label)),
    )
    assert torch.isclose(loss - none, 0.1 * error[[0, 2]].mean())
    loss.backward()
    assert error.grad[[0, 2]].all() and not error.grad[[1, 3]].any()


def brute_force(e, label):
    "The metric loss as it is described, pair by pair."

    def alike(i, j):
        return (float(e[i] @ e[j] / (e[i].norm() * e[j].norm())) + 1) / 2

    reals, fakes = (
        (label == 0).nonzero().flatten().tolist(),
        (label == 1).nonzero().flatten().tolist(),
    )
    within = [alike(i, j) for i in reals for j in reals if i != j]
    between = [alike(i, j) for i in reals for j in fakes]
    return max(0, 1 - sum(within) / len(within) + sum(between) / len(between))


@pytest.mark.parametrize("seed", range(5))
def test_metric_loss_pair_by_pair(seed):
    torch.manual_seed(seed)
    e, label = torch.randn(9, 4), torch.tensor([0, 1, 0, 0, 1, 1, 0, 1, 0])
    assert metric_loss(e, label == 0).item() == pytest.approx(brute_force(e, label), abs=1e-5)


def test_metric_loss_at_its_ends():
    same, apart = (
        torch.tensor([[1.0, 0], [2, 0], [-3, 0]]),
        torch.tensor([[1.0, 0], [-1, 0], [1, 0]]),
    )
    real = torch.tensor([True, True, False])
    assert metric_loss(same, real).item() == pytest.approx(0, abs=1e-6)
    assert metric_loss(apart, real).item() == pytest.approx(1.5)
    assert metric_loss(same, torch.tensor([True, False, False])).item() == pytest.approx(
        0.5
    )  # s = 1 and 0


@pytest.mark.parametrize(
    "label, expected", [([1, 1, 1], 0), ([0], 0), ([1], 0), ([0, 0], 0.5), ([0, 1], 0.5)]
)
def test_metric_loss_without_pairs(label, expected):
    e = torch.eye(3)[: len(label)].requires_grad_()
    loss = metric_loss(e, torch.tensor(label) == 0)
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    loss.backward()
    assert e.grad.isfinite().all()


def test_metric_loss_of_nothing_is_finite():
    e = torch.zeros(4, 8, requires_grad=True)
    metric_loss(e, torch.tensor([True, True, False, False])).backward()
    assert e.grad.isfinite().all()


def test_mean_over_is_the_mean():
    v, mask = torch.randn(5, 7), torch.rand(5, 7) < 0.5
    assert torch.isclose(mean_over(v, mask), v[mask].mean())


def test_loss_by_hand(model):
    right = dict(
        e=torch.tensor([[1.0, 0], [0, 1]]), d2=torch.ones(2, 3), d4=torch.tensor([[1.0], [-1]])
    )  # s = 1/2, 1, 0
    out = dict(
        logit=torch.tensor([0.0, 3.0]), error=torch.tensor([0.2, 7.0]).view(2, 1, 1, 1), **right
    )
    batch = dict(label=torch.tensor([0, 1]))
    classify = F.binary_cross_entropy_with_logits(out["logit"], torch.tensor([0.0, 1.0]))
    assert torch.isclose(model.loss(out, batch), classify + 0.1 * 0.2 + 0.1 * 1.5)
    weighted = model.loss(out, dict(batch, weight=torch.tensor([0.5, 1.0])))
    assert torch.isclose(model.loss(out, batch) - weighted, torch.log(torch.tensor(2.0)) / 4)
    sure = dict(out, logit=torch.tensor([-50.0, 50.0]))
    assert torch.isclose(model.loss(sure, batch), torch.tensor(0.08 + 0.02 + 0.15))


@pytest.mark.parametrize("labels", [[0, 1, 0, 1], [1, 1, 1, 1], [0, 0, 0, 0], [1], [0]])
@pytest.mark.parametrize("half", [False, True])
def test_every_batch_trains_finitely(model, labels, half):
    model.train(len(labels) > 1)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        loss = model.loss(
            model.outputs(torch.rand(len(labels), 3, 64, 64)), dict(label=torch.tensor(labels))
        )
    loss.backward()
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in model.parameters())


def test_a_batch_of_one_equals_its_row_of_a_larger_one(model):
    x = torch.rand(3, 3, 64, 64)
    with torch.no_grad():
        whole, single = model.eval().outputs(x), model.outputs(x[1:2])
    assert all(torch.allclose(whole[k][1:2], single[k], atol=1e-5) for k in whole)


def test_the_decoder_learns_to_paint(model):
    torch.manual_seed(1)
    optimizer = torch.optim.Adam(model.train().parameters(), lr=3e-3)
    x, label = (
        F.interpolate(torch.rand(4, 3, 4, 4), 64, mode="bilinear"),
        torch.tensor([0, 0, 1, 1]),
    )
    errors = []
    for _ in range(25):
        out = model.outputs(x)
        optimizer.zero_grad()
        model.loss(out, dict(label=label)).backward()
        optimizer.step()
        errors.append(out["error"].detach().flatten(1).mean(1)[:2].mean().item())
    assert errors[-1] < 0.75 * errors[0]


# ---- size and weights


def test_published_size():
    with torch.device("meta"):
        model = create_detector("recce").eval()
    parts = [
        parameter_count(getattr(model, name))
        for name in ("body", "decoder", "reasoning", "guided", "fc")
    ]
    assert parts == [20_806_952, 496_856, 1_944_128, 531_524, 2_049]
    assert parameter_count(model) == sum(parts) == 23_781_509 == 23_783_558 - 2_049
    assert macs(model, 256) / 1e9 == pytest.approx(7.9873, rel=0.005)
    assert macs(model, 299) / 1e9 == pytest.approx(11.2272, rel=0.005)
    row = card("recce")
    assert row["cam_layer"] == "body.conv4" and row["grid"] == 8


def test_runs_on_the_meta_device():
    with torch.device("meta"):
        model = recce(width=1 / 8)
    out = model.train().outputs(torch.rand(3, 3, 128, 128, device="meta"))
    assert model.loss(out, dict(label=torch.empty(3, dtype=torch.long, device="meta"))).shape == ()


def test_imagenet_weights_go_into_the_encoder(monkeypatch):
    real, theirs = timm.create_model, timm.create_model("legacy_xception")
    monkeypatch.setattr(
        timm,
        "create_model",
        lambda name, pretrained=False, **o: theirs if pretrained else real(name, **o),
    )
    body = recce(pretrained=True).body.state_dict()
    state = {k: v for k, v in theirs.state_dict().items() if not k.startswith("fc.")}
    assert body.keys() == state.keys() and all(torch.equal(body[k], v) for k, v in state.items())
