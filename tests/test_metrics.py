"""prle.metrics against scikit-learn, naive loops and hand-computed values; the coverage of its intervals."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from scipy.interpolate import interp1d
from scipy.optimize import brentq
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    recall_score,
    roc_auc_score,
    roc_curve,
)

from prle.core import rng
from prle.metrics import (
    EERS,
    BINS,
    MEASURES,
    SOURCES,
    Estimate,
    Ranking,
    Spread,
    acc,
    as_statistic,
    auc,
    average_precision,
    bootstrap,
    brier,
    compare,
    delong,
    detectable,
    ece,
    eer,
    estimate_spread,
    evaluate,
    expected_spread,
    percentile_interval,
    plan_experiment,
    planned_overlap,
    resamples,
    seed_interval,
    total_interval,
    tpr_at,
    verdict,
    video_scores,
)


def worlds(name, n=60, rows=40):
    "Labels, scores with many, some or no ties, and integer weights with zeros; both classes have weight."
    draw, made = rng(name), 0
    while made < n:
        size = int(draw.integers(2, rows))
        label, weight = draw.integers(2, size=size), draw.integers(3, size=size).astype(float)
        many_ties = draw.integers(4, size=size) / 3
        some_ties = draw.integers(15, size=size) / 14
        no_ties = draw.random(size) + label * draw.choice([0, 0.5, 2])
        score = (many_ties, some_ties, no_ties)[made % 3]
        if weight[label == 0].sum() and weight[label == 1].sum():
            made += 1
            yield label, score, weight


def sklearn_eer(label, score, weight=None, definition="deepfakebench"):
    "The three definitions as their code bases compute them, from scikit-learn's curve."
    fpr, tpr, _ = roc_curve(label, score, sample_weight=weight)
    if definition == "interpolated":
        return brentq(lambda x: 1 - x - interp1d(fpr, tpr)(x), 0, 1)
    nearest = np.nanargmin(np.abs((1 - tpr) - fpr))
    return fpr[nearest] if definition == "deepfakebench" else (fpr[nearest] + 1 - tpr[nearest]) / 2


ORACLES = {
    "auc": (auc, roc_auc_score),
    "ap": (average_precision, average_precision_score),
    "eer": (eer, sklearn_eer),
}


@pytest.mark.parametrize("measure", ORACLES)
def test_equals_scikit_learn(measure):
    ours, theirs = ORACLES[measure]
    for label, score, weight in worlds(measure):
        if len(set(label)) == 2:
            assert ours(label, score) == pytest.approx(theirs(label, score), abs=1e-12)
        name = "weight" if measure == "eer" else "sample_weight"
        expected = theirs(label, score, **{name: weight})
        assert ours(label, score, weight) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("over", ["all", "real", "fake", "balanced"])
def test_acc_equals_scikit_learn(over):
    oracle = dict(
        all=accuracy_score,
        balanced=balanced_accuracy_score,
        real=lambda y, p, **k: recall_score(y, p, pos_label=0, **k),
        fake=recall_score,
    )[over]
    for label, score, weight in worlds("acc"):
        for threshold in (0.5, 1 / 3, -1, 3):
            assert acc(label, score, weight, over, threshold) == pytest.approx(
                oracle(label, score > threshold, sample_weight=weight)
            )


@pytest.mark.parametrize("limit", [0.0, 0.01, 0.05, 0.1, 1 / 3, 1.0])
def test_the_rate_of_found_fakes_is_that_of_a_threshold_of_the_roc_curve(limit):
    for label, score, weight in worlds("rates"):
        fpr, tpr, _ = roc_curve(label, score, sample_weight=weight, drop_intermediate=False)
        expected = tpr[fpr <= limit + 1e-12].max()
        assert tpr_at(limit, label, score, weight) == pytest.approx(expected, abs=1e-12)
        if limit in (0.01, 0.05, 0.1):
            name = f"tpr_at_{100 * limit:.0f}"
            assert as_statistic(name, label, score)(weight) == pytest.approx(expected)


def test_brier_equals_scikit_learn_and_ece_a_loop_over_bins():
    for label, score, weight in worlds("calibration"):
        p = np.clip(score, 0, 1)
        expected = brier_score_loss(label, p, sample_weight=weight, labels=[0, 1])
        assert brier(label, p, weight) == pytest.approx(expected)
        off = 0
        for low in np.arange(BINS):
            inside = (p > low / BINS) & (p <= (low + 1) / BINS) | ((low == 0) & (p == 0))
            off += abs((weight * (p - label))[inside].sum())
        assert ece(label, p, weight) == pytest.approx(off / weight.sum(), abs=1e-9)
    with pytest.raises(ValueError, match="no probabilities"):
        evaluate(table(1.0, 0).assign(p_fake=7.0), ["brier"])


def test_a_calibrated_score_has_no_calibration_error():
    p = rng("calibrated").random(200_000)
    label = (rng("calibrated", 1).random(len(p)) < p).astype(int)
    assert ece(label, p) < 0.01 < ece(label, p**2)
    assert brier(label, p) == pytest.approx(1 / 6, abs=0.002), "the mean of p(1 - p)"


def naive_delong(label, a, b):
    "The variance of a mean of differences of placements, pair by pair."
    placements = []
    for score in (a, b):
        fake, real = score[label == 1][:, None], score[label == 0][None]
        wins = (fake > real) + (fake == real) / 2
        placements.append((wins.mean(1), wins.mean(0)))
    parts = [two - one for one, two in zip(*placements)]
    return parts[0].mean(), sum(part.var(ddof=1) / len(part) for part in parts)


def test_delong_equals_pairs_and_agrees_with_the_bootstrap_of_single_faces():
    draw = rng("delong")
    label = draw.integers(2, size=300)
    shared = draw.normal(size=300)
    a, b = (label + shared + draw.normal(size=300) for _ in "ab")
    b = np.round(b, 1)  # ties
    found, (difference, variance) = delong(label, a, b), naive_delong(label, a, b)
    assert found[:2] == pytest.approx((difference, variance**0.5))
    assert found.difference == pytest.approx(auc(label, b) - auc(label, a))
    drawn = resamples(
        lambda w: as_statistic("auc", label, b)(w) - as_statistic("auc", label, a)(w),
        np.arange(300),
    )
    assert drawn.std() == pytest.approx(found.error, rel=0.1)
    assert delong(label, a, a) == (0.0, 0.0, 1.0)


def test_delong_of_four_faces_is_what_one_finds_by_hand():
    "Placements of the fakes (1, 1/2) and (1, 1), of the reals (1/2, 1) and (1, 1)."
    label, a, b = np.array([1, 1, 0, 0]), [0.9, 0.4, 0.5, 0.1], [0.8, 0.7, 0.3, 0.6]
    found = delong(label, a, b)
    assert found.difference == 0.25 and found.error == pytest.approx(0.125**0.5)
    assert found.p == pytest.approx(0.4795, abs=1e-4), "twice the normal tail beyond 0.7071"


@pytest.mark.parametrize("label", [[1, 0, 0], [1, 1, 0]])
def test_delong_needs_two_of_each_class(label):
    with pytest.raises(ValueError, match="two reals and two fakes"):
        delong(np.array(label), [0.9, 0.5, 0.1], [0.8, 0.3, 0.6])


def test_delong_finds_no_difference_as_often_as_it_says():
    draw, ps = rng("no difference"), []
    for _ in range(400):
        label = np.arange(60) % 2
        ps.append(delong(label, *(label + draw.normal(size=60) for _ in "ab")).p)
    assert 0.02 < np.mean(np.array(ps) < 0.05) < 0.09 and 0.4 < np.mean(ps) < 0.6


@pytest.mark.parametrize("definition", EERS)
def test_eer_definitions_follow_the_roc_curve(definition):
    close = 1e-6 if definition == "interpolated" else 1e-14  # the root finder's, and rounding
    for label, score, weight in worlds("definitions", n=400, rows=25):
        ours = eer(label, score, weight, definition)
        theirs = sklearn_eer(label, score, weight, definition)
        assert ours == pytest.approx(theirs, abs=close)


def test_eer_definitions_bound_each_other_and_meet():
    "The interpolated rate lies between FPR and FNR of the nearest corner; on many rows the three are close."
    for label, score, _ in worlds("bounds"):
        if len(set(label)) < 2:
            continue
        fpr, mean, exact = (eer(label, score, definition=d) for d in EERS)
        assert min(fpr, 2 * mean - fpr) - 1e-12 <= exact <= max(fpr, 2 * mean - fpr) + 1e-12
    label = rng("many").integers(2, size=20_000)
    score = label + rng("many", 1).normal(size=20_000)
    assert np.ptp([eer(label, score, definition=d) for d in EERS]) < 2e-3
    normals = 0.3085  # of two that are one standard deviation apart
    assert eer(label, score, definition="interpolated") == pytest.approx(normals, abs=0.01)


def test_eer_by_hand():
    assert eer([0, 0, 1, 1], [0.1, 0.2, 0.3, 0.4]) == 0.0
    assert eer([0, 0, 1, 1], [0.1, 0.3, 0.2, 0.4]) == 0.5
    upside_down = [eer([0, 0, 1, 1], [0.4, 0.3, 0.2, 0.1], definition=d) for d in EERS]
    assert upside_down == [1.0, 1.0, 1.0]
    one_stretch = [eer([0, 1, 0, 1], [0.5] * 4, definition=d) for d in EERS]
    assert one_stretch == [0.0, 0.5, 0.5], "from corner to corner"
    for pairs, rate in ((2, 1 / 2), (3, 1 / 3)):  # one too, but the curve's first point is kept
        label, score = [0, 1] * pairs, np.repeat(np.arange(pairs), 2)
        assert eer(label, score) == sklearn_eer(label, score) == pytest.approx(rate)


@pytest.mark.parametrize(
    "measure", [auc, average_precision, acc, *(lambda *a, d=d: eer(*a, definition=d) for d in EERS)]
)
def test_order_of_rows_does_not_matter_and_weights_repeat_them(measure):
    for label, score, weight in worlds("order", n=30):
        order = rng("permutation", len(label)).permutation(len(label))
        times = weight.astype(int)
        assert measure(label[order], score[order], weight[order]) == pytest.approx(
            measure(label, score, weight), abs=1e-12
        )
        assert measure(label.repeat(times), score.repeat(times)) == pytest.approx(
            measure(label, score, weight), abs=1e-12
        )


@pytest.mark.parametrize("measure", [auc, average_precision, eer])
def test_only_the_order_of_scores_counts(measure):
    for label, score, weight in worlds("monotone", n=30):
        assert measure(label, np.exp(3 * score), weight) == measure(label, score, weight)


@pytest.mark.parametrize(
    "measure", [auc, acc, average_precision, *(lambda *a, d=d: eer(*a, definition=d) for d in EERS)]
)
def test_a_matrix_of_weights_gives_each_rows_value(measure):
    draw = rng("matrix")
    for score in (draw.random(30), draw.integers(5, size=30) / 4):
        label, weight = np.arange(30) % 2, draw.integers(3, size=(20, 30))
        weight[3, label == 1] = 0
        many = measure(label, score, weight)
        assert many.shape == (20,) and np.array_equal(
            many, [measure(label, score, w) for w in weight], equal_nan=True
        )
        assert np.isnan(many[3]) or measure is acc


def test_auc_swaps_with_the_classes():
    for label, score, weight in worlds("swap", n=30):
        assert auc(1 - label, -score, weight) == pytest.approx(auc(label, score, weight))
    assert auc([0, 1], [0.2, 0.3]) == 1.0


def test_acc_is_strict():
    assert acc([0, 1, 1], [0.5, 0.5, 0.9]) == pytest.approx(2 / 3)
    assert acc([0, 1, 1], [0.5, 0.5, 0.9], weight=[1, 2, 1]) == 0.5
    assert acc([1, 1], [0.2, 0.9]) == 0.5  # no reals are needed


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: auc([1, 1], [0.2, 0.3]), "all 2 rows are fake; this measure needs reals too"),
        (lambda: eer([0, 0], [0.2, 0.3]), "all 2 rows are real; this measure needs fakes too"),
        (lambda: acc([0, 0], [0.2, 0.3], over="balanced"), "needs fakes too"),
        (lambda: acc([0, 0], [0.2, 0.3], over="fake"), "needs fakes too"),
        (
            lambda: average_precision([0, 1], [0.2, np.nan]),
            "1 of 2 scores are NaN, the first in row 1",
        ),
        (lambda: auc([0, 2], [0.2, 0.3]), "row 1 has 2"),
        (lambda: auc([0, 1], [0.2, 0.3, 0.4]), "same length"),
        (lambda: auc([], []), "no rows"),
        (lambda: auc([0, 1], [0.2, 0.3], [1, 1, 1]), r"weights of shape \(3,\) do not fit 2 rows"),
        (lambda: auc([0, 1], [0.2, 0.3], [1, -1]), "0 or more"),
        (lambda: auc([0, 1], [0.2, 0.3], [1, np.nan]), "0 or more"),
        (lambda: eer([0, 1], [0.2, 0.3], definition="interpolate"), "Did you mean 'interpolated'"),
        (lambda: acc([0, 1], [0.2, 0.3], over="balance"), "Did you mean 'balanced'"),
    ],
)
def test_bad_input_says_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()


FRAMES = pd.DataFrame(
    dict(
        dataset="FF++",
        subset=["DF", "DF", "NT", "real"],
        video=["071_054"] * 3 + ["071"],
        identity="071",
        label=[1, 1, 1, 0],
        p_fake=[0.2, 0.6, 0.9, 0.1],
    )
)


def test_videos_of_the_same_name_merge_only_in_deepfakebench():
    assert video_scores(FRAMES).p_fake.tolist() == pytest.approx([0.4, 0.9, 0.1])
    merged = video_scores(FRAMES, "deepfakebench")
    assert merged.p_fake.tolist() == pytest.approx([1.7 / 3, 0.1])
    assert merged.subset.tolist() == ["DF+NT", "real"] and merged.label.tolist() == [1, 0]
    assert list(merged) == list(video_scores(FRAMES))


def test_deepfakebench_rounds_the_label_down_and_we_refuse():
    same_name = FRAMES.assign(video="071")
    assert video_scores(same_name, "deepfakebench").label.tolist() == [0]
    with pytest.raises(ValueError, match="FF\\+\\+/DF/071 has real and fake frames"):
        video_scores(same_name.assign(subset="DF"))


def test_video_scores_do_not_depend_on_the_order_and_check_their_input():
    shuffled = video_scores(FRAMES.iloc[[3, 1, 2, 0]])
    assert shuffled.set_index(["subset", "video"]).p_fake.to_dict() == pytest.approx(
        video_scores(FRAMES).set_index(["subset", "video"]).p_fake.to_dict()
    )
    for call, message in [
        (lambda: video_scores(FRAMES, "dfb"), "unknown grouping"),
        (lambda: video_scores(FRAMES.drop(columns=["video", "label"])), "columns video, label"),
        (lambda: video_scores(FRAMES.assign(p_fake=np.nan)), "4 of 4 scores are NaN"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


def naive(measure, label, score, people, n, seed):
    "The bootstrap as one would tell it: draw people, put all rows of each into a pile, measure the pile."
    names, draw, values = np.unique(people), rng("bootstrap", seed), []
    while len(values) < n:
        rows = np.concatenate(
            [np.flatnonzero(people == names[i]) for i in draw.integers(len(names), size=len(names))]
        )
        if len(set(label[rows])) == 2:
            values.append(measure(label[rows], score[rows]))
    return np.array(values)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(
    "measure", [auc, average_precision, eer, lambda *a: acc(*a, over="balanced")]
)
def test_bootstrap_equals_a_naive_loop_with_the_same_draws(measure, ties):
    draw = rng("naive", ties)
    people, label = draw.integers(4, size=40), draw.integers(2, size=40)
    label[people < 2] = 0  # some resamples lack a class and are drawn again
    label[people == 2] = 1
    score = draw.integers(6, size=40) / 5 if ties else draw.random(40)
    wanted = naive(measure, label, score, people, 60, seed=3)
    assert np.allclose(
        resamples(lambda w: measure(label, score, w), people, 60, seed=3), wanted, atol=1e-12
    )
    assert np.allclose(
        resamples(lambda w: measure(label, score, w), people, 60, seed=3, batched=True),
        wanted,
        atol=1e-12,
    )
    found = bootstrap(lambda w: measure(label, score, w), people, 60, 0.8, seed=3)
    assert found == pytest.approx(tuple(np.quantile(wanted, expanded_tails(4, 0.8))))


def expanded_tails(clusters, level):
    "The quantiles of the expanded percentile interval, with scipy's distributions."
    t = scipy.stats.t.ppf((1 + level) / 2, clusters - 1)
    tail = scipy.stats.norm.sf(t * (clusters / (clusters - 1)) ** 0.5)
    return tail, 1 - tail


def test_few_people_widen_a_percentile_interval_and_many_do_not():
    values = np.linspace(0, 1, 10_001)
    widths = [np.diff(percentile_interval(values, people))[0] for people in (2, 10, 40, 10_000)]
    assert widths == pytest.approx([1, 0.9829, 0.9595, 0.95], abs=2e-4)
    assert percentile_interval(values, 10, 0.9) == pytest.approx(expanded_tails(10, 0.9), abs=1e-4)
    assert np.diff(percentile_interval(values, 1))[0] == pytest.approx(1)
    with pytest.raises(ValueError, match="between 0 and 1"):
        percentile_interval(values, 10, 95)


def test_the_interval_of_ten_people_covers_what_it_says():
    "A plain percentile interval of them covers 0.89 and 0.84."
    values = rng("coverage").normal(size=(10, 1000))  # of a thousand experiments

    def mean(weights):
        return weights @ values / weights.sum(-1, keepdims=True)

    for level in (0.95, 0.9):
        low, high = bootstrap(mean, np.arange(10), 1000, level, batched=True)
        assert np.mean((low <= 0) & (0 <= high)) == pytest.approx(level, abs=0.02)


def test_batches_are_cut_without_changing_the_draws():
    x = rng("batches").normal(size=8000)  # four resamples a batch
    people, shapes = np.arange(8000) % 50, []

    def mean(w):
        shapes.append(w.shape)
        return w @ x / w.sum(-1)

    assert np.allclose(
        resamples(mean, people, 10, batched=True),
        resamples(lambda w: np.average(x, weights=w), people, 10),
    )
    assert shapes == [(4, 8000), (4, 8000), (2, 8000)]


def test_the_interval_covers_as_often_as_it_says():
    """Each person has an offset. The interval of the mean over people holds the true mean in about 95%
    of the worlds, the one over rows far less often."""
    hits = dict(people=0, rows=0)
    for world in range(200):
        draw = rng("coverage", world)
        people = np.repeat(np.arange(30), 5)
        x = draw.normal(size=30)[people] + 0.3 * draw.normal(size=150)
        for name, cluster in dict(people=people, rows=np.arange(150)).items():
            low, high = bootstrap(
                lambda w, x=x: w @ x / w.sum(-1), cluster, n=200, seed=world, batched=True
            )
            hits[name] += low <= 0 <= high
    assert 178 <= hits["people"] <= 199 and hits["rows"] < 150


def test_vector_statistics_are_resampled_together():
    x = rng("vector").normal(size=40)
    low, high = bootstrap(
        lambda w: np.array([np.average(x, weights=w), np.average(x + 1, weights=w)]), np.arange(40)
    )
    assert np.allclose(low + [1, 0], low[1]) and np.allclose(high + [1, 0], high[1])


def test_same_seed_same_interval():
    x = rng("x").normal(size=30)

    def interval(seed):
        return bootstrap(lambda w: np.average(x, weights=w), np.arange(30), n=50, seed=seed)

    assert interval(1) == interval(1) != interval(2)


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda: bootstrap(lambda w: np.nan, ["a", "b"], n=10),
            "0 of 200 resamples of 2 clusters .* too few people",
        ),
        (
            lambda: bootstrap(lambda w: w.sum(-1) * np.nan, ["a", "b"], n=10, batched=True),
            "too few people",
        ),
        (lambda: bootstrap(np.mean, ["a", None]), "belongs to no cluster"),
        (lambda: bootstrap(np.mean, ["a", "b"], n=0), "1 or more, not 0"),
        (lambda: bootstrap(np.mean, ["a", "b"], level=95), "between 0 and 1, not 95"),
        (lambda: seed_interval([1.0]), "2 seeds or more"),
        (lambda: seed_interval(1.0), "2 seeds or more"),
        (lambda: seed_interval([1.0, np.nan]), "NaN"),
    ],
)
def test_impossible_intervals_are_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_seed_interval_by_hand_and_by_column():
    low, high = seed_interval([1.0, 3.0])  # mean 2, standard error 1, t = 12.706
    assert (low, high) == pytest.approx((2 - 12.7062, 2 + 12.7062), abs=1e-3)
    lows, highs = seed_interval([[1.0, 5.0], [3.0, 5.0]], level=0.5)  # t = 1
    assert lows == pytest.approx([1.0, 5.0]) and highs == pytest.approx([3.0, 5.0])


def test_total_interval_in_its_limits():
    same, spread = np.full(3, 0.7), np.array([0.6, 0.7, 0.8])
    values = rng("limits").normal(0.7, 0.02, size=2000)
    few, many = [range(50)] * 3, [range(10**5)] * 3
    assert total_interval(spread, np.full(2000, 0.7), few) == pytest.approx(seed_interval(spread))
    low, high = total_interval(same, values, many)
    assert high - low == pytest.approx(2 * 1.96 * values.std(), rel=1e-3)
    assert total_interval(same, np.full(2000, 0.7), few) == pytest.approx((0.7, 0.7))


def test_total_interval_covers_where_each_source_alone_does_not():
    hits = dict(people=0, seeds=0, both=0)
    for world in range(300):
        draw = rng("total", world)
        x = draw.normal(size=20) + draw.normal(
            0, 0.4, size=(3, 1)
        )  # a person's difficulty and a seed's luck
        boot = resamples(
            lambda w, x=x: w @ x.mean(0) / w.sum(-1), np.arange(20), 200, world, batched=True
        )
        ends = dict(
            people=np.quantile(boot, [0.025, 0.975]),
            seeds=seed_interval(x.mean(1)),
            both=total_interval(x.mean(1), boot, [range(20)] * 3),
        )
        for name, (low, high) in ends.items():
            hits[name] += low <= 0 <= high
    assert 273 <= hits["both"] <= 297 and hits["people"] < 265


DESIGNS = [(4, 4), (6, 4), (3, 1)]  # seeds, folds; six seeds test two folds twice


@pytest.mark.parametrize("seeds, folds", DESIGNS)
@pytest.mark.parametrize("of_seed", [0.1, 1.0])
def test_intervals_cover_whoever_is_tested_by_a_seed(seeds, folds, of_seed):
    "With no effect and with one that is found four times in five; seeds' chance small and large."
    truth = Spread(np.nan, np.nan, of_seed**2, 1.3**2)  # of a person: 1 for all seeds, 0.8 for one
    design = planned_overlap(seeds, 24, folds)
    effect, worlds = detectable(expected_spread(truth, design)), 120
    covered = found = 0
    groups = np.array_split(np.arange(24), folds)
    people = [groups[seed % folds] for seed in range(seeds)]
    tested = np.zeros((seeds, 24))
    for seed, of in enumerate(people):
        tested[seed, of] = 1
    draws = rng("who").multinomial(24, [1 / 24] * 24, size=150).astype(float)
    draws = draws[((draws @ tested.T) > 0).all(1)]
    for world in range(worlds):
        draw = rng("folds", seeds, folds, world, str(of_seed))
        luck = draw.normal(0, of_seed, (seeds, 1)) + draw.normal(0, 0.8, (seeds, 24))
        values = tested * (draw.normal(0, 1, 24) + luck)
        means = (draws @ values.T) / (draws @ tested.T)
        mean = values.sum(1) / tested.sum(1)
        half = estimate_spread(mean, means.mean(1), people).half()
        covered += abs(mean.mean()) <= half
        found += effect + mean.mean() > half
    assert 0.9 * worlds <= covered and 0.65 * worlds <= found <= 0.93 * worlds


def test_people_are_counted_once():
    "The variance of four seeds on people of their own is that between them, whatever people make of it."
    people = [range(10 * seed, 10 * seed + 10) for seed in range(4)]
    values, drawn = np.array([1.0, 2.0, 4.0, 5.0]), rng("once").normal(0, 0.1, 500)
    assert estimate_spread(values, drawn, people).variance == pytest.approx(values.var(ddof=1) / 4)
    doubled = estimate_spread(values, drawn, [range(10)] * 4)
    assert doubled.variance == pytest.approx(values.var(ddof=1) / 4 + drawn.var(ddof=1))
    calm = estimate_spread(np.full(4, 3.0), drawn, people)
    assert calm.variance == pytest.approx(drawn.var(ddof=1)) and calm.seed_variance == 0
    assert calm.person_variance == pytest.approx(40 * drawn.var(ddof=1)) and calm.freedom == 39


def test_seeds_on_other_people_are_compared_too():
    "Every seed with its own people; seeds that share people must share all faces."
    seeds = [table(1.0, seed) for seed in range(3)]
    for seed, scores in enumerate(seeds):
        scores["identity"] += f" of {seed % 2}"
    found = evaluate(seeds, ["auc"], over="both", n=100).iloc[0]
    values = [auc(t.label, t.p_fake) for t in seeds]
    assert found.value == pytest.approx(np.mean(values)) and found.low < found.value < found.high
    better = [t.assign(p_fake=t.p_fake + 0.3 * t.label) for t in seeds]
    gain = compare(seeds, better, ["auc"], over="both", n=100).iloc[0]
    assert gain.low <= gain.difference <= gain.high and gain.difference > 0
    with pytest.raises(ValueError, match="table 2 of scores has 107 rows, table 0 has 108"):
        evaluate([*seeds[:2], seeds[2].iloc[1:]], ["auc"])


def test_a_plan_resolves_what_it_was_made_for():
    noise = Spread(np.nan, np.nan, 9.0, 60.0)
    for difference in (1.0, 2.0, 4.0):
        seeds, people = plan_experiment(noise, difference, 40, folds=4)
        planned = expected_spread(noise, planned_overlap(seeds, people, 4))
        assert detectable(planned) <= difference
        if people == 40:
            fewer = expected_spread(noise, planned_overlap(seeds - 1, 40, 4))
            assert 3.0 * fewer.half(0.9) > difference
    assert plan_experiment(noise, 4.0, 40, folds=4)[1] == 40
    assert plan_experiment(noise, 1.0, 40, folds=4)[1] > 40
    with pytest.raises(ValueError, match="spread between seeds is not known"):
        plan_experiment(noise._replace(seed_variance=np.nan), 2.0, 40)


@pytest.mark.parametrize("power", [0.8, 0.9, 0.99])
@pytest.mark.parametrize("seed_variance", [0.0, 0.05, 0.36, 0.45, 0.69, 1.16, 1.5])
def test_a_plan_ends_whatever_the_seeds_do(seed_variance, power):
    "Two or three seeds have so few degrees of freedom that no number of people would help."
    noise = Spread(np.nan, np.nan, seed_variance, 3600.0)
    seeds, people = plan_experiment(noise, 2.0, 30, power=power)
    assert people < 200_000
    assert detectable(expected_spread(noise, planned_overlap(seeds, people)), power) <= 2


def test_large_tables_are_resampled_in_smaller_batches():
    "The same numbers, with less in memory at once."
    held, values = [], rng("wide").normal(size=20)

    def mean(weight):
        held.append(len(weight))
        return weight @ values

    narrow = resamples(mean, np.arange(20), 300, batched=True)
    assert held == [300]
    wide = resamples(mean, np.arange(20), 300, batched=True, width=2**16)
    assert max(held[1:]) == 64 and np.array_equal(narrow, wide)


@pytest.mark.parametrize("column", ["identity", "frame"])
def test_rows_without_an_entry_are_the_same_rows(column):
    a, b = (table(s, 0).assign(**{column: np.nan}) for s in (1.0, 2.0))
    assert len(compare(a, b, ["auc"], cluster="video", n=50)) == 1


def test_seeds_without_people_are_compared():
    first, second = (
        [table(gap, seed).assign(identity=np.nan) for seed in (0, 1)] for gap in (1, 2)
    )
    (row,) = compare(first, second, ["auc"], over="seeds").itertuples()
    means = [np.mean([auc(t.label, t.p_fake) for t in tables]) for tables in (first, second)]
    assert row.difference == pytest.approx(means[1] - means[0]) and row.low < row.high


@pytest.mark.parametrize(
    "low, high, inner, said",
    [
        (0.1, 5.0, 1.9, "holds"),
        (-5.0, -0.1, 1.9, "does not hold"),
        (-2.5, 2.2, 1.9, "equivalent"),
        (-2.5, 2.2, 2.1, "undecided"),
        (-2.5, 2.2, np.nan, "undecided"),
        (np.nan, np.nan, np.nan, "undecided"),
    ],
)
def test_verdicts(low, high, inner, said):
    above = (np.nextafter(0, 1), np.inf)
    assert verdict(Estimate((low + high) / 2, low, high, -inner, inner), above) == said


def table(strength, seed, people=12):
    draw, hard = rng("table", strength, seed), rng("hard").normal(size=people)
    rows = pd.DataFrame(
        [
            dict(
                path=f"{i}{s}{f}.png",
                dataset="d",
                subset=s,
                video=f"v{i % 5}{'' if s == 'real' else 'f'}{i}",
                identity=f"p{i}",
                label=int(s != "real"),
            )
            for i in range(people)
            for s in ("real", "DF", "NT")
            for f in range(3)
        ]
    )
    logit = strength * (rows.label - 0.4) + hard.repeat(9) + draw.normal(size=len(rows))
    return rows.assign(p_fake=(1 / (1 + np.exp(-logit))).round(2))


def test_evaluate_gives_each_measure_with_the_bootstraps_interval():
    t = table(1.0, 0)
    rows = evaluate(t, MEASURES, n=50).set_index("measure")
    functions = dict(
        auc=auc,
        ap=average_precision,
        acc=acc,
        eer=eer,
        brier=brier,
        ece=ece,
        **{f"tpr_at_{n}": (lambda *a, n=n: tpr_at(n / 100, *a)) for n in (1, 5, 10)},
        **{f"acc_{o}": (lambda *a, o=o: acc(*a, over=o)) for o in ("real", "fake", "balanced")},
        **{f"eer_{d}": (lambda *a, d=d: eer(*a, definition=d)) for d in EERS[1:]},
    )
    assert set(functions) == set(MEASURES)
    for name, f in functions.items():
        assert (
            rows.value[name]
            == pytest.approx(f(t.label, t.p_fake))
            == as_statistic(name, t.label, t.p_fake)(np.ones(len(t)))
        )
        assert (rows.low[name], rows.high[name]) == pytest.approx(
            bootstrap(lambda w, f=f: f(t.label, t.p_fake, w), t.identity, n=50)
        )


@pytest.mark.parametrize("unit, videos", [("video", 36), ("deepfakebench", 24)])
def test_evaluate_by_video(unit, videos):
    t = table(1.0, 0)
    grouped = video_scores(t, unit)
    assert len(grouped) == videos
    row = evaluate(t, ["auc"], unit=unit, n=20).iloc[0]
    assert (
        row.value == auc(grouped.label, grouped.p_fake)
        and row.unit == unit
        and row.low < row.value < row.high
    )
    assert row.value != evaluate(t, ["auc"], n=20).value[0]


def test_clusters_may_be_videos():
    t = table(1.0, 0)
    row = evaluate(t, ["auc"], cluster="video", n=40).iloc[0]
    assert (row.low, row.high) == pytest.approx(
        bootstrap(
            lambda w: auc(t.label, t.p_fake, w),
            t.groupby(["dataset", "subset", "video"]).ngroup(),
            n=40,
        )
    )


def test_compare_is_paired_and_antisymmetric():
    a, b = table(1.0, 0), table(1.5, 0)
    row, back = compare(a, b, ["auc"], n=60).iloc[0], compare(b, a, ["auc"], n=60).iloc[0]

    def difference(w):
        return auc(b.label, b.p_fake, w) - auc(a.label, a.p_fake, w)

    assert row.difference == pytest.approx(row.b - row.a) and (row.low, row.high) == pytest.approx(
        bootstrap(difference, a.identity, n=60)
    )
    assert (back.difference, back.low, back.high) == pytest.approx(
        (-row.difference, -row.high, -row.low)
    )
    nothing = compare(a, a, n=20)
    assert (nothing[["difference", "low", "high"]] == 0).all(axis=None)


def test_seeds_enter_as_asked():
    a, b = ([table(s, seed) for seed in range(3)] for s in (1.0, 1.5))
    values = np.array([auc(y.label, y.p_fake) - auc(x.label, x.p_fake) for x, y in zip(a, b)])
    rows = {over: compare(a, b, ["auc"], over=over, n=200).iloc[0] for over in SOURCES}
    for row in rows.values():
        assert row.difference == pytest.approx(values.mean())
    assert (rows["seeds"].low, rows["seeds"].high) == pytest.approx(seed_interval(values))
    mean = resamples(
        lambda w: np.mean(
            [auc(y.label, y.p_fake, w) - auc(x.label, x.p_fake, w) for x, y in zip(a, b)], axis=0
        ),
        a[0].identity,
        200,
        batched=True,
    )
    assert (rows["clusters"].low, rows["clusters"].high) == pytest.approx(
        tuple(np.quantile(mean, expanded_tails(12, 0.95)))
    )
    assert (rows["both"].low, rows["both"].high) == pytest.approx(
        total_interval(values, mean, [range(12)] * 3)
    )


def test_tables_are_deterministic():
    t = table(1.0, 0)
    assert evaluate(t, n=30).equals(evaluate(t, n=30)) and not evaluate(t, n=30).equals(
        evaluate(t, n=30, seed=1)
    )


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda t: evaluate(t, ["aoc"]), "unknown measure 'aoc'. Did you mean 'auc'"),
        (lambda t: evaluate(t, unit="frames"), "Did you mean 'frame'"),
        (lambda t: evaluate(t, cluster="person"), "unknown cluster"),
        (lambda t: evaluate(t, over="seed"), "Did you mean 'seeds'"),
        (lambda t: evaluate(t, level=2), "between 0 and 1"),
        (lambda t: evaluate(t, over="seeds"), "2 seeds or more"),
        (lambda t: evaluate(t, over="both"), "2 seeds or more"),
        (lambda t: evaluate([]), "no table"),
        (lambda t: evaluate(t[t.label == 1]), "needs reals too"),
        (
            lambda t: evaluate(t.assign(p_fake=t.p_fake.where(t.index > 2))),
            "3 of 108 scores are NaN",
        ),
        (lambda t: evaluate(t.drop(columns="identity")), "lack the column identity"),
        (
            lambda t: evaluate(t.assign(identity=t.identity.where(t.index > 2)), n=5),
            "belongs to no cluster",
        ),
        (lambda t: compare(t, t[:-1]), "has 107 rows, table 0 has 108"),
        (
            lambda t: compare(t, t[::-1]),
            "row 0 of table 1 of scores is not the face of table 0: its path is",
        ),
        (lambda t: compare(t, t.assign(label=1 - t.label)), "its label is 1, not 0"),
        (lambda t: compare(t, [t, t]), "1 seeds of a and 2 of b"),
    ],
)
def test_bad_tables_say_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call(table(1.0, 0))


def test_ranking_sorts_once_and_counts_exactly():
    ranking = Ranking([0, 1, 1, 0], [0.2, 0.6, 0.6, 0.9])
    fake, real = ranking.counts([1, 2, 3, 4])
    assert (
        ranking.values.tolist() == [0.9, 0.6, 0.2]
        and fake.tolist() == [0, 5, 0]
        and real.tolist() == [4, 0, 1]
    )
