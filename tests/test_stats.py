"""Intervals and tests over groups: against slow loops, SciPy, and simulations whose truth is known."""
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats

from busi_unetpp.dataset import BusiError
from busi_unetpp.lesions import combine_parts, score_parts, score_image, summarize_scores
from busi_unetpp.stats import _draw, _tail, bootstrap_groups, interval_table, paired_test


def mean_dice(m): return m.dice
def pooled_dice(m): return 2*m.tp/(2*m.tp + m.fp + m.fn)

def fake_scores(n, seed=0, shift=0):
    "Scores of `n` images without pixels: a third normals, some missed, some false alarms."
    rng, rows = np.random.default_rng(seed), []
    true = np.zeros((20, 30), bool)
    true[5:12, 8:18] = 1
    for i in range(n):
        m = true & (i % 3 > 0)
        pred = np.roll(m, rng.integers(0, 4) + shift, axis=1) & (rng.random() > .1)
        if rng.random() < .2: pred[0, :3] = 1
        rows.append(dict(image=f'{i}.png', label='benign' if i % 3 else 'normal', **score_image(pred, m)))
    return pd.DataFrame(rows)

@pytest.fixture(scope='module')
def scores(): return fake_scores(30)

@pytest.fixture(scope='module')
def groups(scores): return pd.DataFrame(dict(image=scores.image, group=[f'g{i//2}' for i in range(30)]))


def test_it_is_the_loop_over_samples(scores, groups):
    "The matrix product against copying the rows of each drawn group."
    value, low, high = bootstrap_groups(scores, mean_dice, groups, n=300, seed=5)
    parts = [g for _, g in scores.groupby(groups.group, sort=False)]
    slow = []
    for times in _draw(len(parts), 300, 5):
        slow.append(pd.concat([p for p, k in zip(parts, times) for _ in range(k)]).dice.mean())
    tail = _tail(15)
    assert (value, low, high) == pytest.approx((scores.dice.mean(), *np.quantile(slow, [tail, 1 - tail])))

def test_pooled_scores_are_ratios_of_sums(scores, groups):
    value, low, high = bootstrap_groups(scores, pooled_dice, groups)
    assert value == pytest.approx(2*scores.tp.sum()/(2*scores.tp + scores.fp + scores.fn).sum()) and low < value < high

def test_unequal_groups_weigh_by_their_images():
    t = pd.DataFrame(dict(image=list('abcd'), dice=[1., 1, 1, 0]))
    g = pd.DataFrame(dict(image=list('abcd'), group=[0, 0, 0, 1]))
    assert bootstrap_groups(t, mean_dice, g) == (.75, 0, 1)

def test_with_single_images_it_is_scipys_bootstrap():
    x = np.random.default_rng(1).beta(3, 1, 500)
    t = pd.DataFrame(dict(image=[str(i) for i in range(500)], dice=x))
    want = stats.bootstrap((x,), np.mean, method='percentile', n_resamples=9999, rng=2).confidence_interval
    assert bootstrap_groups(t, mean_dice, t.assign(group=t.image), n=9999)[1:] == pytest.approx(tuple(want), abs=.0025)

def test_the_tail_is_hesterbergs():
    assert _tail(10**6) == pytest.approx(.025, abs=1e-5)
    assert _tail(10) == pytest.approx(stats.norm.cdf(-np.sqrt(10/9)*2.2621571628), abs=1e-6)

@settings(max_examples=20)
@given(st.integers(2, 12), st.integers(0, 99))
def test_an_interval_holds_what_all_groups_share(n, seed):
    t = pd.DataFrame(dict(image=[str(i) for i in range(n)], dice=.5))
    assert bootstrap_groups(t, mean_dice, t.assign(group=t.image), n=50, seed=seed) == pytest.approx((.5, .5, .5))

def test_same_seed_same_interval_other_seed_another(scores, groups):
    assert bootstrap_groups(scores, mean_dice, groups) == bootstrap_groups(scores, mean_dice, groups.sample(frac=1, random_state=0))
    assert bootstrap_groups(scores, mean_dice, groups)[1:] != bootstrap_groups(scores, mean_dice, groups, seed=1)[1:]

def test_several_statistics_at_once(scores, groups):
    value, low, high = bootstrap_groups(scores, lambda m: dict(a=m.dice, b=pooled_dice(m)), groups)
    assert (value.a, low.a, high.a) == bootstrap_groups(scores, mean_dice, groups) and list(high.index) == ['a', 'b']

@pytest.mark.parametrize('statistic', [lambda m: m.dice.mean(), lambda m: .5, lambda m: m.dice[:3]])
def test_a_statistic_of_all_samples_is_refused(scores, groups, statistic):
    with pytest.raises(BusiError, match='each row'): bootstrap_groups(scores, statistic, groups)

def test_a_nan_is_not_dropped(scores, groups):
    bad = scores.assign(dice=scores.dice.where(scores.index != 4))
    assert np.isnan(bootstrap_groups(bad, mean_dice, groups)).all()
    assert np.isfinite(bootstrap_groups(bad, pooled_dice, groups)).all()        # a column that is not asked for does no harm

def test_groups_that_do_not_fit_are_refused(scores, groups):
    with pytest.raises(BusiError, match=r"'29.png' is in no group \(1 "): bootstrap_groups(scores, mean_dice, groups[:-1])
    with pytest.raises(BusiError, match="'3.png' is in two groups"): interval_table(scores, pd.concat([groups, groups[3:4]]))
    with pytest.raises(BusiError, match='at least two groups'): paired_test(scores, scores, groups.assign(group=1))
    more = pd.concat([groups, pd.DataFrame(dict(image=['other.png'], group=['x']))])  # groups of all of BUSI for a test part
    assert bootstrap_groups(scores, mean_dice, more) == bootstrap_groups(scores, mean_dice, groups)


def grouped(rng, n, correlation):
    "A column with the mean 0 in groups of 1 to 4."
    group = np.repeat(np.arange(n), rng.integers(1, 5, n))[:n]
    x = np.sqrt(correlation)*rng.normal(size=n)[group] + np.sqrt(1 - correlation)*rng.normal(size=n)
    images = [str(i) for i in range(n)]
    return pd.DataFrame(dict(image=images, dice=x)), pd.DataFrame(dict(image=images, group=group))

def test_groups_cover_and_images_do_not():
    rng, hits = np.random.default_rng(0), np.zeros(2)
    for i in range(200):
        t, g = grouped(rng, 150, .8)
        for k, by in enumerate((g, t.assign(group=t.image))):
            _, low, high = bootstrap_groups(t, mean_dice, by, n=300, seed=i)
            hits[k] += low <= 0 <= high
    assert 180 <= hits[0] <= 198 and hits[1] < 172


# all scores

def test_interval_table_is_the_summary(scores, groups):
    t = interval_table(scores, groups).set_index('metric')
    assert t.value.to_dict() == pytest.approx({k: v for k, v in summarize_scores(scores).items() if k in t.index}, nan_ok=True)
    assert set(summarize_scores(scores)) - set(t.index) == {'images', 'with_tumor', 'lesions'}
    assert ((t.low <= t.value + 1e-12) & (t.value <= t.high + 1e-12)).all()

def test_parts_of_a_resample_are_the_scores_of_its_rows(scores):
    picked = scores.iloc[np.random.default_rng(0).integers(0, 30, 50)].reset_index(drop=True)
    got = combine_parts(score_parts(picked).mean().to_frame().T).iloc[0].to_dict()
    assert got == pytest.approx({k: v for k, v in summarize_scores(picked).items() if k in got}, nan_ok=True)

def test_no_normals_no_share_of_normals(scores, groups):
    t = interval_table(scores[scores.label == 'benign'], groups).set_index('metric')
    assert t.loc[['clean_normals', 'alarms_per_normal', 'alarm_area']].isna().all().all() and t.loc['hd95'].notna().all()


# two runs

def test_a_real_difference_is_found_and_none_is_not(scores, groups):
    worse = fake_scores(30, shift=3)
    t = paired_test(scores, worse, groups).set_index('metric')
    assert t.p['image_dice_with_tumor'] < .01 and t.high['image_dice_with_tumor'] < 0 and t.low['assd'] > 0
    assert t.difference['image_dice_with_tumor'] == pytest.approx(summarize_scores(worse)['image_dice_with_tumor'] - summarize_scores(scores)['image_dice_with_tumor'])
    same = paired_test(scores, scores.sample(frac=1, random_state=1), groups)
    assert same[['difference', 'low', 'high']].abs().max().max() < 1e-12 and (same.p == 1).all()
    back = paired_test(worse, scores, groups).set_index('metric')
    assert back.difference.to_dict() == pytest.approx((-t.difference).to_dict()) and back.low.to_dict() == pytest.approx((-t.high).to_dict())

def test_no_p_value_is_below_what_the_exchanges_can_show(scores, groups):
    better = scores.assign(dice=scores.dice + 1)
    assert paired_test(scores, better, groups, n=99).set_index('metric').p['image_dice'] == pytest.approx(.01)

def test_p_is_scipys_sign_flip_over_groups(scores, groups):
    a = scores[:20]
    b = a.assign(dice=np.clip(a.dice + np.random.default_rng(3).normal(.03, .08, 20), 0, 1))
    sums = [t.dice.groupby(groups.group[:20], sort=False).sum() for t in (a, b)]
    exact = stats.permutation_test(sums, lambda x, y, axis: np.mean(y - x, axis=axis), permutation_type='samples', vectorized=True, n_resamples=np.inf).pvalue
    assert .02 < exact < .9
    assert paired_test(a, b, groups, n=20_000).set_index('metric').p['image_dice'] == pytest.approx(exact, abs=.012)

def test_false_positives_are_as_many_as_stated():
    "Two equal runs whose differences agree within groups: over groups 5 % fall below 0.05, over images many more."
    rng, base, hits = np.random.default_rng(0), fake_scores(60), np.zeros(2)
    group = np.arange(60)//4
    g = pd.DataFrame(dict(image=base.image, group=group))
    for i in range(80):
        other = base.assign(dice=base.dice + .05*rng.normal(size=15)[group] + .01*rng.normal(size=60))
        for k, by in enumerate((g, g.assign(group=g.image))):
            hits[k] += paired_test(base, other, by, n=200, seed=i).set_index('metric').p['image_dice'] < .05
    assert hits[0] <= 10 and hits[1] > 16

def test_runs_on_other_images_are_refused(scores, groups):
    with pytest.raises(BusiError, match=r"'0.png' is only in the first table \(2 "): paired_test(scores, scores[2:], groups)
    with pytest.raises(BusiError, match="'0.png' is only in the second table"): paired_test(scores[1:], scores, groups)
    with pytest.raises(BusiError, match="'5.png' is in the second table more than once"): paired_test(scores, pd.concat([scores, scores[5:6]]), groups)
