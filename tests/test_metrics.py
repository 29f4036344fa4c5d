"""prle.metrics against scikit-learn, by hand, and the coverage of its intervals."""
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from prle.core import rng
from prle.metrics import acc, auc, average_precision, bootstrap, eer, video_scores


@pytest.mark.parametrize("ties", [False, True])
def test_auc_equals_scikit_learn(ties):
    draw = rng("auc", ties)
    for _ in range(20):
        label, weight = draw.integers(2, size=50), draw.integers(4, size=50).astype(float)
        score = draw.integers(6, size=50) / 5 if ties else draw.random(50)
        assert auc(label, score) == pytest.approx(roc_auc_score(label, score))
        assert auc(label, score, weight) == pytest.approx(roc_auc_score(label, score, sample_weight=weight))


def test_auc_of_one_class_is_nan_and_fake_is_positive():
    assert np.isnan(auc([1, 1], [.2, .3])) and auc([0, 1], [.2, .3]) == 1.0


def test_acc_is_strict_and_weighted():
    assert acc([0, 1, 1], [.5, .5, .9]) == pytest.approx(2 / 3)
    assert acc([0, 1, 1], [.5, .5, .9], weight=np.array([1., 2., 1.])) == 0.5
    assert acc([0, 1, 1], [.5, .5, .9], balanced=True) == 0.75


def test_eer_by_hand():
    assert eer([0, 0, 1, 1], [.1, .2, .3, .4]) == 0.0
    assert eer([0, 0, 1, 1], [.1, .3, .2, .4]) == 0.5


def test_average_precision_by_hand():
    assert average_precision([0, 1, 1], [.5, .4, .9]) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)


def test_videos_of_the_same_name_do_not_merge():
    frames = pd.DataFrame(dict(dataset="FF++", subset=["DF", "DF", "NT", "real"], video=["071_054"] * 3 + ["071"], identity="071", label=[1, 1, 1, 0], p_fake=[.2, .6, .9, .1]))
    assert video_scores(frames).p_fake.tolist() == pytest.approx([.4, .9, .1])


def test_the_interval_covers_as_often_as_it_says():
    "Scores with a person's offset: the mean's 95% interval over people must hold the true mean in about 95% of the worlds, the one over rows far less often."
    hits = dict(people=0, rows=0)
    for world in range(200):
        draw = rng("coverage", world)
        people = np.repeat(np.arange(30), 5)
        x = draw.normal(size=30)[people] + 0.3 * draw.normal(size=150)
        for name, cluster in dict(people=people, rows=np.arange(150)).items():
            low, high = bootstrap(lambda w: np.average(x, weights=w), cluster, n=200, seed=world)
            hits[name] += low <= 0 <= high
    assert 178 <= hits["people"] <= 199 and hits["rows"] < 150


def test_vector_statistics_are_resampled_together():
    draw = rng("vector")
    x = draw.normal(size=40)
    low, high = bootstrap(lambda w: np.array([np.average(x, weights=w), np.average(x + 1, weights=w)]), np.arange(40))
    assert np.allclose(low + [1, 0], low[1]) and np.allclose(high + [1, 0], high[1])


def test_same_seed_same_interval():
    x = rng("x").normal(size=30)
    interval = lambda seed: bootstrap(lambda w: np.average(x, weights=w), np.arange(30), n=50, seed=seed)
    assert interval(1) == interval(1) != interval(2)


def test_too_few_people_is_an_error():
    with pytest.raises(ValueError, match="too few people"):
        bootstrap(lambda w: auc([0, 0], [.1, .2], w), ["a", "b"], n=10)
