"""Temperature, threshold and reliability against scikit-learn, hand-computed values and made-up truths."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from scipy.special import expit
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss

from prle.calibration import (
    choose_threshold,
    draw_reliability,
    fit_temperature,
    reliability,
    with_temperature,
)
from prle.core import rng
from prle.metrics import acc, auc, tpr_at


def made_up(name, n=3000, factor=1.0):
    "Labels, and scores whose logits are off the truth by a factor."
    draw = rng(name)
    truth = 1.5 * draw.normal(size=n)
    return (draw.random(n) < expit(truth)).astype(int), expit(factor * truth)


@pytest.mark.parametrize("factor", [0.5, 1.0, 4.0])
def test_the_temperature_is_what_the_logits_are_off_by(factor):
    label, p = made_up("temperature", 20_000, factor)
    temperature = fit_temperature(label, p)
    assert temperature == pytest.approx(factor, rel=0.05)
    cooled = with_temperature(p, temperature)
    assert auc(label, cooled) == pytest.approx(auc(label, p), abs=1e-12)
    for other in (0.8, 1.25):
        assert log_loss(label, cooled) < log_loss(label, with_temperature(p, temperature * other))


def test_scores_of_zero_and_one_stay_finite():
    p = with_temperature([0.0, 0.5, 1.0], 10.0)
    assert p == pytest.approx([1 - p[2], 0.5, expit(np.log(1e9 - 1) / 10)])
    assert 0.5 < fit_temperature([0, 0, 1, 1], [0.0, 1.0, 1.0, 0.0]) <= 100, "two are wrong"


def test_reliability_equals_scikit_learn():
    label, p = made_up("reliability")
    table = reliability(label, p, bins=10)
    found, said = calibration_curve(label, p, n_bins=10)
    assert table.found.tolist() == pytest.approx(found)
    assert table.said.tolist() == pytest.approx(said) and table.faces.sum() == len(p)
    assert (table.low <= table.said).all() and (table.said <= table.high).all()
    ends = reliability([0, 1], [0.0, 1.0], bins=4)
    assert ends[["low", "high"]].to_numpy().tolist() == [[0, 0.25], [0.75, 1]]


def test_the_picture_shows_each_bin():
    table = reliability(*made_up("picture"), bins=5)
    figure, ax = plt.subplots()
    draw_reliability(ax, table, "made up")
    line = ax.get_lines()[1]
    assert line.get_label() == "made up" and line.get_xdata().tolist() == table.said.tolist()
    areas = ax.collections[0].get_sizes()
    assert areas == pytest.approx((300 * table.faces / table.faces.sum()).tolist())
    plt.close(figure)


@pytest.mark.parametrize("ties", [False, True])
def test_no_threshold_is_better_than_the_chosen_one(ties):
    label, p = made_up("threshold", 300)
    p = p.round(1) if ties else p
    best = choose_threshold(label, p)
    every = np.concatenate([[0], np.unique(p), [1]])
    accuracies = [acc(label, p, over="balanced", threshold=t) for t in (every[1:] + every[:-1]) / 2]
    assert acc(label, p, over="balanced", threshold=best.value) == max(accuracies)
    assert best.tpr == (p[label == 1] > best.value).mean()
    assert best.fpr == (p[label == 0] > best.value).mean()
    for limit in (0.0, 0.01, 0.1, 1.0):
        strict = choose_threshold(label, p, "fpr", limit)
        assert strict.tpr == pytest.approx(tpr_at(limit, label, p)) and strict.fpr <= limit


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: with_temperature([0.5], 0), "above 0"),
        (lambda: with_temperature([5.0], 1), "probabilities"),
        (lambda: fit_temperature([0, 1], [-3.0, 3.0]), "probabilities"),
        (lambda: fit_temperature([1, 1], [0.5, 0.6]), "needs reals"),
        (lambda: reliability([0, 1], [0.5, 1.5]), "probabilities"),
        (lambda: reliability([0, 1], [0.5, np.nan]), "NaN"),
        (lambda: choose_threshold([0, 1], [0.5, 0.6], "youden"), "rule"),
    ],
)
def test_bad_input_says_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_saturated_false_alarm_forbids_no_temperature():
    "One score at 1 of a real costs as much as one at 0 of a fake."
    draw = np.random.default_rng(0)
    label = np.arange(2000) % 2
    p_fake = 1 / (1 + np.exp(-0.1 * (2 * label - 1) * draw.gamma(4, size=2000)))
    found = []
    for wrong, score in ((0, 1.0), (1, 0.0)):
        scores = p_fake.copy()
        scores[wrong] = score
        found.append(fit_temperature(label, scores))
    assert found[0] == pytest.approx(found[1], rel=0.05) and found[0] < 0.5


def test_a_threshold_lies_below_what_it_calls_fake():
    above = np.nextafter(1, 0)
    chosen = choose_threshold([0, 0, 1, 1], [0.2, above, 1.0, 1.0])
    assert chosen.tpr == 1 and chosen.fpr == 0 and above <= chosen.value < 1


@pytest.mark.parametrize("limit", [-0.1, 5, np.nan])
def test_a_limit_is_a_share(limit):
    with pytest.raises(ValueError, match="limit of false alarms must lie in"):
        choose_threshold([0, 1], [0.2, 0.7], "fpr", limit)


def test_a_threshold_is_chosen_of_probabilities():
    with pytest.raises(ValueError, match="must be probabilities"):
        choose_threshold([0, 1], [-3.0, 4.0])
