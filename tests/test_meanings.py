"The meanings of IoU against slow loops over sets of pixels, and the algebra of Table 1 against counts whose scores are known."
import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings, strategies as st
from hypothesis.extra.numpy import arrays

from busi_unetpp.dataset import BusiError
from busi_unetpp.evaluate import PAPER_TABLE1
from busi_unetpp.meanings import (AT_ORIGINAL, MEANINGS, PROB_MEANINGS, averaged_tumor_bounds, class_ious, count_meanings, implied_tumor_scores, iou_meanings,
    keras_mean_iou, plot_meanings, plot_two_class, tumor_iou_bounds, two_class_iou)

shares = st.floats(.01, .6)
counts_of_an_image = st.tuples(*[st.integers(0, 50)]*3, st.integers(1, 200))

@st.composite
def scored(draw):
    "Probabilities and masks `(N, 4, 5)`, and labels: a mask without tumor may belong to a benign image."
    n = draw(st.integers(1, 5))
    probs = draw(arrays(np.float32, (n, 4, 5), elements=st.sampled_from([0., .01, .3, .5, .5001, .7, .99999, 1.])))
    masks = draw(arrays(np.uint8, (n, 4, 5), elements=st.integers(0, 1)))
    empty = draw(st.lists(st.booleans(), min_size=n, max_size=n))
    masks[np.array(empty)] = 0
    return probs, masks, draw(st.lists(st.sampled_from(['normal', 'benign', 'malignant']), min_size=n, max_size=n))

def mean(values): return np.mean(values) if len(values) else np.nan

def two(t, p):
    "Mean IoU over the classes that are there or predicted, from sets of pixels."
    sides = [({i for i, v in enumerate(t) if v == c}, {i for i, v in enumerate(p) if v == c}) for c in (False, True)]
    return np.mean([len(a & b)/len(a | b) for a, b in sides if a | b])

def tumor(t, p, empty):
    a, b = ({i for i, v in enumerate(x) if v} for x in (t, p))
    return len(a & b)/len(a | b) if a | b else empty

def slowly(probs, masks, labels, batch_size):
    "Every meaning, image by image."
    p, t = [list(x.ravel() > .5) for x in probs], [list(x.ravel() > 0) for x in masks]
    pairs, lesions = list(zip(t, p)), [(a, b) for a, b, label in zip(t, p, labels) if label != 'normal']
    def joined(pairs): return [sum(side, []) for side in zip(*pairs)]
    def soft(p, y):
        both = sum(a*b for a, b in zip(p, y))
        return (both + 1)/(sum(p) + sum(y) - both + 1)
    values = [two(*joined(pairs)), mean([two(*joined(pairs[i:i + batch_size])) for i in range(0, len(p), batch_size)]), mean([two(*x) for x in pairs]), tumor(*joined(pairs), np.nan),
        tumor(*joined(lesions), np.nan) if lesions else np.nan, mean([tumor(*x, 1) for x in lesions]), mean([tumor(*x, 1) for x in pairs]), mean([tumor(*x, 0) for x in pairs]),
        mean([tumor(*x, 0) for x in pairs if any(x[0]) or any(x[1])]), two(sum(t, []), (probs.ravel() == 1).tolist()), mean([soft(x.ravel().tolist(), y.ravel().tolist()) for x, y in zip(probs, masks)])]
    return dict(zip([*MEANINGS, 'two classes, probabilities into Keras', 'tumor, mean of images, soft'], values))

@settings(max_examples=60)
@given(scored(), st.integers(1, 3))
def test_every_meaning_is_what_it_says(case, batch_size):
    table = iou_meanings(*case, batch_size=batch_size)
    value = dict(zip(table.name, table.value))
    for name, v in slowly(*case, batch_size).items(): assert value[name] == pytest.approx(v, nan_ok=True), name
    assert not value['tumor, pooled, best threshold'] < value['tumor, pooled'] - 1e-9     # both NaN where there is no tumor

def test_table_has_its_columns_and_each_meaning_a_source():
    probs, masks = np.random.default_rng(0).random((4, 6, 6)), np.eye(6, dtype=int)[None].repeat(4, 0)
    labels = ['benign']*4
    original = pd.DataFrame([[3, 1, 2, 30]]*4, columns=['tp', 'fp', 'fn', 'tn'])
    table = iou_meanings(probs, masks, labels, original)
    assert list(table) == ['name', 'formula', 'value', 'where met'] and table.notna().all(axis=None)
    assert table.name.is_unique and len(table) == len(MEANINGS) + len(PROB_MEANINGS) + len(AT_ORIGINAL)
    assert table.value.iloc[-2] == pytest.approx(.5)                    # tumor, pooled, original size

@settings(max_examples=40)
@given(arrays(np.float32, (3, 4), elements=st.sampled_from([0., .4, .9999999, 1.])), arrays(np.uint8, (3, 4), elements=st.integers(0, 1)))
def test_keras_counts_only_ones(probs, true):
    matrix = [[0, 0], [0, 0]]
    for p, t in zip(probs.ravel().tolist(), true.ravel().tolist()): matrix[int(t)][int(p)] += 1
    ious = [matrix[c][c]/u for c in (0, 1) if (u := sum(matrix[c]) + matrix[0][c] + matrix[1][c] - matrix[c][c])]
    assert keras_mean_iou(probs, true) == pytest.approx(np.mean(ious))

def test_keras_as_measured():
    "Values of Keras 3.15.1 on the same arrays."
    p, t = np.float32([[.2, .6, 1, .9999], [0, .99, .4, 1]]), np.float32([[0, 1, 1, 1], [0, 0, 0, 0]])
    assert keras_mean_iou(p, t) == pytest.approx(.4107143, abs=1e-6) and keras_mean_iou(p > .5, t) == pytest.approx(.6, abs=1e-6)


# algebra

@settings(max_examples=100)
@given(counts_of_an_image)
def test_algebra_finds_the_scores_of_known_counts(counts):
    tp, fp, fn, tn = counts
    assume(tp and fp + fn and tp <= tn)                                 # the smaller root is the tumor's
    n = sum(counts)
    accuracy, ious = (tp + tn)/n, class_ious([counts])[0]
    got = implied_tumor_scores(accuracy, ious.mean(), decimals=12).value
    assert got.tumor_iou == pytest.approx(ious[1], abs=1e-4) and got.background_iou == pytest.approx(ious[0], abs=1e-4)
    assert got.tumor_dice == pytest.approx(2*tp/(2*tp + fp + fn), abs=1e-4)
    assert got.tumor_share_from <= (tp + fn)/n + 1e-4 and (tp + fn)/n <= got.tumor_share_to + 1e-4

@pytest.mark.parametrize('part', ['train', 'test'])
def test_rounding_bounds_hold_everything_that_rounds_to_table_1(part):
    a, m = PAPER_TABLE1[part]['accuracy'], PAPER_TABLE1[part]['iou']
    table, rng = implied_tumor_scores(a, m), np.random.default_rng(0)
    for da, dm in rng.uniform(-.5e-4, .5e-4, (200, 2)):
        inside = implied_tumor_scores(a + da, m + dm).value
        assert (table.low <= inside + 1e-12).all() and (inside <= table.high + 1e-12).all()
    assert (table.high - table.low).max() < 5e-4

@settings(max_examples=100)
@given(st.floats(.01, .99), shares, st.floats(0, 1))
def test_a_two_class_mean_bounds_the_tumor_iou(iou, tumor, missed):
    m = two_class_iou(iou, tumor, missed)
    assume(np.isfinite(m))
    low, high = tumor_iou_bounds(m, tumor)
    assert low - 1e-6 <= iou <= high + 1e-6

@settings(max_examples=100)
@given(st.lists(counts_of_an_image, min_size=1, max_size=6))
def test_bounds_hold_for_any_batches(batches):
    counts = np.array([[tp + 1, fp, fn, tn] for tp, fp, fn, tn in batches])
    pixels = counts.sum(1)
    each, accuracy = class_ious(counts), (counts[:, [0, 3]].sum(1)/pixels).mean()
    bounds = averaged_tumor_bounds(accuracy, each.mean(), ((counts[:, 0] + counts[:, 2])/pixels).max())
    dice = 2*each[:, 1]/(1 + each[:, 1])
    assert bounds.low.tumor_iou - 1e-9 <= each[:, 1].mean() <= bounds.high.tumor_iou + 1e-9
    assert bounds.low.tumor_dice - 1e-9 <= dice.mean() <= bounds.high.tumor_dice + 1e-9


# refusals, figures, a run

@pytest.mark.parametrize('probs, masks, labels, why', [(np.full((1, 2, 2), 1.2), np.zeros((1, 2, 2)), ['benign'], 'between 0 and 1'),
    (np.full((1, 2, 2), np.nan), np.zeros((1, 2, 2)), ['benign'], 'are numbers'), (np.zeros((1, 2, 2)), np.full((1, 2, 2), 255), ['benign'], 'divide by 255'),
    (np.zeros((0, 2, 2)), np.zeros((0, 2, 2)), [], 'not empty'), (np.zeros((1, 2, 2)), np.zeros((2, 2, 2)), ['benign'], 'one shape'),
    (np.zeros((1, 2, 2)), np.zeros((1, 2, 2)), ['benign', 'normal'], 'a label for each')])
def test_bad_input_is_refused(probs, masks, labels, why):
    with pytest.raises(BusiError, match=why): iou_meanings(probs, masks, labels)

@pytest.mark.parametrize('counts', [[[-1, 0, 0, 5]], [[0, 0, 0, 0]], [[1, 2, 3]]])
def test_bad_counts_are_refused(counts):
    with pytest.raises(BusiError): count_meanings(counts, ['benign'])

@pytest.mark.parametrize('accuracy, iou', [(.9124, .4), (.9124, .9), (1.2, .6), (1., 1.), (np.nan, .5), (.9, np.nan)])
def test_figures_that_no_mask_can_have_are_refused(accuracy, iou):
    with pytest.raises(BusiError, match='no prediction has both'): implied_tumor_scores(accuracy, iou)

def test_figures_show_all_meanings_and_points():
    fig = plot_meanings(pd.DataFrame(dict(name=list(MEANINGS), value=np.linspace(.1, .9, len(MEANINGS)))))
    assert [t.get_text() for t in fig.axes[0].get_yticklabels()] == list(MEANINGS)
    assert len(plot_two_class(points={'here': (.5, .7)}).axes[0].lines) == 3
