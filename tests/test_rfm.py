"""RFM: the attention map and its side effects, the walk that erases, noise, flooding, the published size, time."""

import copy
import time

import pytest
import torch
from torch.func import functional_call
from torch.nn.parallel import DistributedDataParallel

from prle.detectors.registry import card, create_detector, macs, parameter_count
from prle.detectors.rfm import (
    LONGEST,
    RECTANGLES,
    draw_rectangles,
    erase,
    erased_pixels,
    forgery_attention,
    rfm,
)


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = rfm(width=1 / 8)
    torch.nn.init.normal_(model.fc.weight, std=0.5)
    model(torch.rand(8, 3, 64, 64))  # running statistics that differ from a batch's
    return model.train()


def erase_by_walking(fam, rectangles):
    "Erasing of one face, as published: sort, walk down, skip what is erased, stop after the last rectangle."
    height, width = fam.shape
    erased, n = torch.zeros(height, width, dtype=torch.bool), 0
    for pixel in torch.sort(fam.flatten(), descending=True, stable=True).indices.tolist():
        row, column = pixel // width, pixel % width
        if erased[row, column]:
            continue
        h, w, a, b = rectangles[n].tolist()
        for r in range(row - a, row + h - a):
            for c in range(column - b, column + w - b):
                if 0 <= r < height and 0 <= c < width:
                    erased[r, c] = True
        n += 1
        if n == len(rectangles):
            return erased


# ---- the attention map


def test_attention_is_the_largest_derivative_of_the_difference_of_the_outputs(model):
    x = torch.rand(2, 3, 64, 64)
    fam = forgery_attention(model, x)
    model.eval()
    for i in range(2):
        one = x[i : i + 1].clone().requires_grad_()
        two = model.fc(model.body(one).mean((2, 3)))
        (two[0, 1] - two[0, 0]).backward()
        assert torch.allclose(fam[i], one.grad[0].abs().max(0).values, rtol=1e-3, atol=1e-7)


def test_looking_leaves_nothing_behind(model):
    model.body.bn2.eval()  # frozen by somebody: must stay so
    modes = [m.training for m in model.modules()]
    state = {k: v.clone() for k, v in model.state_dict().items()}
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    fam = forgery_attention(model, torch.rand(2, 3, 64, 64))
    assert not fam.requires_grad and fam.min() >= 0 and fam.any()
    assert [m.training for m in model.modules()] == modes and not model.body.bn2.training
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert all((p.grad == 1).all() for p in model.parameters())


def test_modes_are_restored_after_an_error(model):
    with pytest.raises(RuntimeError):
        forgery_attention(model, torch.rand(2, 5, 64, 64))
    assert all(m.training for m in model.modules())


# ---- the walk


@pytest.mark.parametrize("height, width", [(64, 64), (48, 80), (17, 9)])
def test_batched_erasing_is_the_walk(height, width):
    torch.manual_seed(height)
    fam, rectangles = torch.rand(40, height, width), draw_rectangles(40, height, width)
    walked = torch.stack([erase_by_walking(*face) for face in zip(fam, rectangles)])
    assert torch.equal(erased_pixels(fam, rectangles), walked)


def test_batched_erasing_is_the_walk_with_ties():
    torch.manual_seed(1)
    fam, rectangles = torch.randint(0, 4, (60, 24, 24)).float(), draw_rectangles(60, 24, 24)
    walked = torch.stack([erase_by_walking(*face) for face in zip(fam, rectangles)])
    assert torch.equal(erased_pixels(fam, rectangles), walked)


@pytest.mark.parametrize("offsets", [(1, 1), (3, 1), (1, 2), (3, 2)])
def test_a_pixel_that_escapes_has_had_its_turn(offsets):
    a, b = offsets
    fam = torch.zeros(1, 20, 20)
    fam[0, 10, 10], fam[0, 0, 19] = 9, 8
    rectangles = torch.tensor([[[3, 2, a, b], [1, 2, 1, 1], [1, 1, 1, 1]]])
    expected = torch.zeros(20, 20, dtype=torch.bool)
    expected[10 - a : 13 - a, 10 - b : 12 - b] = True
    assert expected[10, 10] == (a < 3 and b < 2)
    # the second rectangle is drawn at the corner, where it lies above the face; the third at the first zero,
    # to the left of it
    assert torch.equal(erased_pixels(fam, rectangles)[0], expected)


def test_erasing_a_flat_map_starts_in_reading_order():
    rectangles = torch.tensor([[[3, 3, 1, 1]] * 3])
    erased = erased_pixels(torch.zeros(1, 8, 8), rectangles)[0]
    assert torch.equal(erased, erase_by_walking(torch.zeros(8, 8), rectangles[0]))


# ---- draws


@pytest.mark.parametrize("size, longest", [(224, 120), (256, 137), (64, 34), (1, 1)])
def test_edges_scale_with_the_face(size, longest):
    torch.manual_seed(0)
    h, w, a, b = draw_rectangles(30_000, size, size).flatten(0, 1).T
    assert h.min() == w.min() == a.min() == b.min() == 1 and h.max() == w.max() == longest
    assert (a <= h).all() and (b <= w).all() and (a == h).any() and (b == w).any()
    assert h.float().mean() == pytest.approx((longest + 1) / 2, rel=0.01)
    assert (a / h).mean() == pytest.approx(
        (1 + (1 / torch.arange(1, longest + 1)).mean().item()) / 2, rel=0.01
    )
    assert longest == max(1, round(LONGEST * size)) and RECTANGLES == 3


# ---- what comes in its place


def test_noise_is_uniform_and_the_rest_stays():
    torch.manual_seed(0)
    x, fam = torch.full((300, 3, 64, 64), 2.0), torch.rand(300, 64, 64)
    y = erase(x, fam)
    erased = (y != 2).all(1)
    assert torch.equal((y != 2).any(1), erased) and erased.flatten(1).any(1).all()
    noise = y[y != 2]
    assert noise.min() >= -1 and noise.max() < 1
    assert noise.mean().abs() < 0.01 and noise.var() == pytest.approx(1 / 3, rel=0.02)
    assert not torch.equal(y[:, 0][erased], y[:, 1][erased])


def test_same_seed_same_erasing(model):
    x = torch.rand(4, 3, 64, 64)

    def run(seed):
        torch.manual_seed(seed)
        return copy.deepcopy(model)(x)

    assert torch.equal(run(3), run(3)) and not torch.equal(run(3), run(4))


def test_only_training_erases_and_it_erases_reals_and_fakes(model):
    seen = []
    model.body.conv1.register_forward_hook(lambda m, args, out: seen.append(args[0].detach()))
    x = torch.rand(6, 3, 64, 64)
    normalized = (x - 0.5) / 0.25
    model.outputs(x)
    look, step = seen
    assert torch.equal(look, normalized) and (step != normalized).flatten(1).any(1).all()
    with torch.no_grad():
        model.outputs(x)
    model.eval()
    model.outputs(x)
    assert all(torch.equal(s, normalized) for s in seen[2:]) and len(seen) == 4


def test_batch_norm_sees_a_batch_once(model):
    before = model.body.bn1.num_batches_tracked.item()
    model(torch.rand(4, 3, 64, 64))
    assert model.body.bn1.num_batches_tracked == before + 1


# ---- training


def gradients(model):
    return {n: p.grad.clone() for n, p in model.named_parameters()}


@pytest.mark.parametrize("half", [False, True])
def test_gradients_reach_every_parameter(model, half):
    batch = dict(label=torch.arange(8) % 2)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        out = model.outputs(torch.rand(8, 3, 64, 64))
    model.loss(out, batch).backward()
    assert all(g.isfinite().all() and g.any() for g in gradients(model).values())


def test_swapped_weights_are_used_for_looking(model):
    "functional_call trains weights that the module does not own: the map must be theirs."
    x = torch.rand(2, 3, 64, 64)
    other = {n: p.detach() * 0 for n, p in model.named_parameters()}
    maps = []
    model.body.conv1.register_full_backward_hook(
        lambda m, grad_in, grad_out: maps.append(grad_in[0])
    )
    functional_call(model, other | dict(model.named_buffers()), (x,))
    assert len(maps) == 1 and not maps[0].any()


def test_wrapped_for_distributed_training(model, tmp_path):
    batch, x = dict(label=torch.arange(4) % 2), torch.rand(4, 3, 64, 64)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    torch.manual_seed(5)
    model.loss(dict(logit=model(x)), batch).backward()
    plain = gradients(model)
    model.zero_grad()
    model.load_state_dict(state)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        wrapped = DistributedDataParallel(model)
        torch.manual_seed(5)
        model.loss(dict(logit=wrapped(x)), batch).backward()
    finally:
        torch.distributed.destroy_process_group()
    assert all(torch.allclose(g, plain[n], atol=1e-6) for n, g in gradients(model).items())


def test_flooding(model):
    label, logit = torch.tensor([1, 0]), torch.tensor([9.0, -9.0], requires_grad=True)
    sure = torch.log1p(torch.exp(torch.tensor(-9.0)))
    loss = model.loss(dict(logit=logit), dict(label=label))
    assert torch.isclose(loss, 0.08 - sure)
    loss.backward()
    assert logit.grad[0] > 0 > logit.grad[1]  # below 0.04 the loss is driven up again
    weight = torch.tensor([1.0, 0.5])
    half = model.loss(dict(logit=torch.zeros(2)), dict(label=label, weight=weight))
    assert torch.isclose(half, 0.75 * torch.log(torch.tensor(2.0)))


# ---- size


def test_published_size():
    with torch.device("meta"):
        model = create_detector("rfm")
    assert parameter_count(model) == 20_811_050
    assert macs(model, 256) / 1e9 == pytest.approx(5.9507, rel=0.005)
    assert macs(model, 224) / 1e9 == pytest.approx(4.5508, rel=0.005)
    assert macs(model.train(), 64) == macs(model.eval(), 64)  # the pass that looks is not counted
    assert card("rfm")["cam_layer"] == "body.conv4"


def test_trains_on_the_meta_device():
    with torch.device("meta"):
        model = rfm(width=1 / 8)
    assert model.train()(torch.rand(2, 3, 64, 64, device="meta")).shape == (2,)


def test_has_no_pretrained_weights():
    with pytest.raises(ValueError, match="no pretrained weights"):
        rfm(pretrained=True)


def test_erasing_takes_at_most_20_ms_a_face():
    "Issue 'Detectors': an image of 256x256 on one core; the best of five, for the core is shared."
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    x, fam = torch.rand(8, 3, 256, 256), torch.rand(8, 256, 256)

    def seconds():
        start = time.perf_counter()
        erase(x, fam)
        return time.perf_counter() - start

    try:
        assert min(seconds() for _ in range(5)) / 8 < 0.02
    finally:
        torch.set_num_threads(threads)
