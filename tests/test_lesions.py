"""Scores at the original size: against slow and independent computations, and every rule for empty masks and missed lesions."""
from itertools import permutations

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from scipy import ndimage
from scipy.spatial import cKDTree
from scipy.spatial.distance import dice as scipy_dice

from busi_unetpp.dataset import BusiError, measure_tumors, read_busi
from busi_unetpp.lesions import (SIZE_BANDS, _hits, by_group, drop_small, lesion_ious, match_lesions, score_image, score_images, size_band, summarize_scores,
    surface_distances, to_original)
from busi_unetpp.metrics import COUNTS, set_scores
from busi_unetpp.preprocess import load_arrays

shapes = st.tuples(st.integers(2, 12), st.integers(2, 12))

@st.composite
def mask_pairs(draw):
    "Two masks of one shape; full, empty and speckled ones are common."
    shape = draw(shapes)
    return tuple(draw(arrays(bool, shape, fill=st.just(draw(st.booleans())))) & draw(st.booleans()) for _ in range(2))

def slow_edges(m):
    "Pixels of `m` with a neighbor above, below, left or right that is not in `m`."
    h, w = m.shape
    inside = lambda y, x: 0 <= y < h and 0 <= x < w and m[y, x]
    return np.array([(y, x) for y, x in np.argwhere(m) if not all(inside(y + i, x + j) for i, j in ((1, 0), (-1, 0), (0, 1), (0, -1)))])

def slow_distances(a, b):
    a, b = slow_edges(a), slow_edges(b)
    there, back = cKDTree(b).query(a)[0], cKDTree(a).query(b)[0]
    return max(np.percentile(there, 95), np.percentile(back, 95)), (there.sum() + back.sum())/(len(a) + len(b))


# resizing

@settings(max_examples=30)
@given(arrays(np.float32, st.tuples(st.integers(2, 9), st.integers(2, 9)), elements=st.floats(0, 1, width=32)), st.integers(9, 30), st.integers(9, 30))
def test_enlarging_is_plain_bilinear(probs, height, width):
    got = to_original(probs, height, width)
    want = torch.nn.functional.interpolate(torch.tensor(probs)[None, None], (height, width), mode='bilinear', align_corners=False)[0, 0]
    assert got.shape == (height, width) and got.dtype == np.float32
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert got.min() >= probs.min() - 1e-6 and got.max() <= probs.max() + 1e-6

def test_a_square_comes_back_where_it_was():
    true = np.zeros((300, 500), np.uint8)
    true[90:210, 150:400] = 1
    small = np.asarray(Image.fromarray(true*255).resize((128, 128), Image.Resampling.BILINEAR))/255
    back = to_original(small, 300, 500) > .5
    assert score_image(back, true)['dice'] > .98
    assert np.abs(np.subtract(ndimage.center_of_mass(back), ndimage.center_of_mass(true))).max() < .5

@pytest.mark.parametrize('probs, words', [(np.zeros((1, 4, 4)), 'two dimensions'), (np.zeros(4), 'two dimensions'), (np.full((4, 4), 1.1), 'sigmoid'),
    (np.full((4, 4), -.1), 'sigmoid'), (np.full((4, 4), np.nan), 'NaN'), (np.full((4, 4), np.inf), 'outside 0-1')])
def test_what_is_no_probability_map(probs, words):
    with pytest.raises(BusiError, match=words): to_original(probs, 8, 8)


# overlap

@settings(max_examples=60)
@given(mask_pairs())
def test_overlap_is_scipys_and_scikit_images(pair):
    pred, true = pair
    s = score_image(pred, true)
    assert s['tp'] + s['fp'] + s['fn'] + s['tn'] == pred.size and all(isinstance(s[c], int) for c in COUNTS)
    if pred.any() or true.any():
        assert s['dice'] == pytest.approx(1 - scipy_dice(pred.ravel(), true.ravel()))
        assert s['iou'] == pytest.approx((pred & true).sum()/(pred | true).sum())
    if pred.any(): assert s['precision'] == pytest.approx(true[pred].mean())
    if true.any(): assert s['recall'] == pytest.approx(pred[true].mean())
    assert not any(isinstance(v, float) and not np.isfinite(v) for v in s.values())


# distances

@settings(max_examples=80)
@given(mask_pairs())
def test_distances_are_the_definition(pair):
    pred, true = pair
    got = surface_distances(pred, true)
    if pred.any() and true.any(): assert got == pytest.approx(slow_distances(pred, true), abs=1e-4)
    assert got == surface_distances(true, pred)
    assert 0 <= got[1] and max(got) <= np.hypot(*pred.shape) and np.isfinite(got).all()
    assert surface_distances(true, true) == (0, 0)

@pytest.mark.filterwarnings('ignore')
def test_distances_are_monais():
    from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance
    rng = np.random.default_rng(0)
    for _ in range(5):
        pred, true = (ndimage.gaussian_filter(rng.normal(size=(50, 70)), 5) > .02 for _ in range(2))
        a, b = (torch.tensor(m)[None, None] for m in (pred, true))
        hd = compute_hausdorff_distance(a, b, include_background=True, percentile=95).item()
        assert surface_distances(pred, true) == pytest.approx((hd, compute_average_surface_distance(a, b, include_background=True, symmetric=True).item()), abs=1e-4)

def test_a_missed_lesion_costs_more_than_any_outline():
    empty, true = np.zeros((30, 40), bool), np.zeros((30, 40), bool)
    true[0, 0] = 1
    worst = np.zeros((30, 40), bool)
    worst[-1, -1] = 1
    assert surface_distances(empty, true) == surface_distances(true, empty) == (50, 50)
    assert surface_distances(worst, true)[0] < 50 and surface_distances(empty, empty) == (0, 0)

def test_importing_the_library_is_silent_and_late():
    import subprocess, sys
    code = "import sys, warnings; warnings.simplefilter('ignore'); import busi_unetpp.lesions; print('monai' in sys.modules); warnings.simplefilter('always'); import monai.metrics"
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ('False\n', '')


# the rules, all in one place

RULES = {  # lesion?, predicted? -> what each score is
    (0, 0): dict(dice=1, iou=1, precision=1, recall=1, hd95=0, assd=0, lesions=0, found_10=0, found_50=0, false_alarms_10=0, false_alarms_50=0, size_band='none'),
    (0, 1): dict(dice=0, iou=0, precision=0, recall=1, hd95=10, assd=10, lesions=0, found_10=0, found_50=0, false_alarms_10=1, false_alarms_50=1, size_band='none'),
    (1, 0): dict(dice=0, iou=0, precision=0, recall=0, hd95=10, assd=10, lesions=1, found_10=0, found_50=0, false_alarms_10=0, false_alarms_50=0, size_band='medium'),
    (1, 1): dict(dice=1, iou=1, precision=1, recall=1, hd95=0, assd=0, lesions=1, found_10=1, found_50=1, false_alarms_10=0, false_alarms_50=0, size_band='medium')}

@pytest.mark.parametrize('case', RULES)
def test_rules_for_nothing(case):
    blob = np.zeros((6, 8), bool)
    blob[2:4, 2:4] = 1
    got = score_image(blob & bool(case[1]), blob & bool(case[0]))
    assert {k: got[k] for k in RULES[case]} == RULES[case]

def test_a_missed_lesion_pulls_every_mean_down():
    blob = np.zeros((60, 80), np.uint8)
    blob[20:40, 20:40] = 1
    row = lambda pred, true, label: dict(image='x', label=label, **score_image(pred, true))
    found, missed, normal = row(blob, blob, 'benign'), row(0*blob, blob, 'benign'), row(0*blob, 0*blob, 'normal')
    s = summarize_scores(pd.DataFrame([found, missed, normal]))
    assert (s['image_dice_with_tumor'], s['hd95'], s['assd'], s['found_10'], s['image_dice']) == pytest.approx((.5, 50, 50, .5, 2/3))
    assert (s['images'], s['with_tumor'], s['lesions'], s['clean_normals'], s['alarm_area']) == (3, 2, 2, 1, 0)
    everything = summarize_scores(pd.DataFrame([missed, missed]))
    assert everything['hd95'] == pytest.approx(100) and everything['image_precision_with_tumor'] == 0 and everything['found_10'] == 0
    assert np.isnan([everything[k] for k in ('clean_normals', 'alarms_per_normal', 'alarm_area')]).all()
    assert np.isnan([summarize_scores(pd.DataFrame([normal]))[k] for k in ('hd95', 'found_10', 'image_dice_with_tumor')]).all()


# lesions

@settings(max_examples=80)
@given(mask_pairs(), st.sampled_from([.1, .3, .5, .8]))
def test_matching_is_the_best_there_is(pair, at):
    pred, true = pair
    (t, n), (p, m) = (ndimage.label(a, np.ones((3, 3))) for a in (true, pred))  # SPECK removes nothing from masks this small
    iou = np.array([[((t == i) & (p == j)).sum()/((t == i) | (p == j)).sum() for j in range(1, m + 1)] for i in range(1, n + 1)]).reshape(n, m)
    np.testing.assert_allclose(lesion_ious(pred, true), iou)
    hits, misses, alarms = match_lesions(pred, true, at)
    assert (hits + misses, hits + alarms) == (n, m)
    good = iou >= at
    if max(n, m) <= 6:
        wide = good if n <= m else good.T
        assert hits == max((sum(wide[i, j] for i, j in enumerate(p)) for p in permutations(range(wide.shape[1]), wide.shape[0])), default=0)

def test_one_finding_counts_for_one_lesion():
    true, pred = np.zeros((2, 20, 60), bool)
    true[5:15, 5:15] = true[5:15, 17:27] = 1
    pred[5:15, 5:27] = 1                                                        # one finding over both
    assert match_lesions(pred, true, .1) == (1, 1, 0) and match_lesions(true, pred, .1) == (1, 0, 1)

def test_two_good_pairs_are_better_than_one_very_good():
    ious = np.array([[.9, .4], [.4, 0]])
    assert _hits(ious, .3) == 2 and _hits(ious, .5) == 1 and _hits(ious[:, :1], .3) == 1 and _hits(ious[:0], .3) == 0

def test_touching_corners_are_one_lesion_and_specks_are_none():
    true = np.zeros((60, 60), bool)
    true[10:30, 10:30] = true[30:40, 30:40] = 1
    assert match_lesions(true, true, .5) == (1, 0, 0)
    true[50, 50] = true[55, 2] = 1                                              # 1 of 500 pixels each
    assert match_lesions(true, true, .5) == (1, 0, 2)                           # a finding on a speck is a false alarm
    assert match_lesions(drop_small(true, 2), true, .5) == (1, 0, 0)
    alone = np.zeros((60, 60), bool)
    alone[3, 3] = 1
    assert match_lesions(alone, alone, .5) == (1, 0, 0)                         # however small, the only lesion is one

@pytest.mark.parametrize('below, left', [(0, [1, 4, 9]), (1, [1, 4, 9]), (2, [4, 9]), (4, [4, 9]), (5, [9]), (10, [])])
def test_small_findings_can_be_dropped(below, left):
    pred = np.zeros((20, 20), bool)
    pred[1, 1] = pred[5:7, 5:7] = pred[10:13, 10:13] = 1
    assert sorted(np.bincount(ndimage.label(drop_small(pred, below))[0].ravel())[1:].tolist()) == left
    assert score_image(pred, 0*pred, drop_below=below)['false_alarms_10'] == len(left)

def test_size_bands_have_no_gaps():
    assert [size_band(a) for a in (0, 1e-6, *SIZE_BANDS.values())] == ['none', 'small', 'small', 'medium', 'large']
    assert all(size_band(a) in SIZE_BANDS for a in np.linspace(1e-9, 1, 999))


# bad input

@pytest.mark.parametrize('score', [score_image, surface_distances, lesion_ious, lambda p, t: match_lesions(p, t, .5)])
def test_masks_that_do_not_match_are_refused(score):
    with pytest.raises(BusiError, match=r'\(4, 5\), the mask \(5, 4\)'): score(np.zeros((4, 5)), np.zeros((5, 4)))
    with pytest.raises(BusiError, match='to_original'): score(np.zeros((1, 4, 5)), np.zeros((1, 4, 5)))
    with pytest.raises(BusiError, match='prediction holds values other'): score(np.full((4, 5), .7), np.zeros((4, 5)))
    with pytest.raises(BusiError, match='mask holds values other'): score(np.zeros((4, 5)), np.full((4, 5), 255))

@pytest.fixture(scope='module')
def phantom(small_phantom): return read_busi(small_phantom)

@pytest.fixture(scope='module')
def probs(phantom): return ndimage.gaussian_filter(load_arrays(phantom, 48)[1].astype(np.float32), (0, 1, 1))

def test_maps_and_images_have_to_agree(phantom, probs):
    with pytest.raises(BusiError, match='3 probability maps for 16'): score_images(phantom, probs[:3])
    with pytest.raises(BusiError, match=r"'benign/benign \(1\).png' has no probability map \(1 "): score_images(phantom, probs[1:], names=phantom.image[1:])
    with pytest.raises(BusiError, match='sigmoid'): score_images(phantom, probs*9)
    with pytest.raises(BusiError, match='Restore the original mask'): score_images(phantom.assign(height=10), probs)
    with pytest.raises(BusiError, match='empty'): summarize_scores(score_images(phantom, probs)[:0])


# a whole set

def test_a_set_is_scored_at_the_original_size(phantom, probs):
    t = score_images(phantom, probs)
    assert t.image.tolist() == phantom.image.tolist() and t.label.tolist() == phantom.label.tolist() and not t.isna().any().any()
    assert t[COUNTS].sum(axis=1).tolist() == (phantom.width*phantom.height).tolist()
    np.testing.assert_allclose(t.area, measure_tumors(phantom).tumor)
    s = summarize_scores(t)
    assert {k: s[k] for k in set_scores([[1, 1, 1, 1]])} == pytest.approx(set_scores(t[COUNTS]), nan_ok=True)
    full = t[t.area > 0]
    for k in ('dice', 'iou', 'precision', 'recall'): assert s[f'image_{k}_with_tumor'] == pytest.approx(full[k].mean())
    assert (s['hd95'], s['assd'], s['found_50']) == pytest.approx((full.hd95.mean(), full.assd.mean(), full.found_50.sum()/full.lesions.sum()))
    assert s['false_alarms_50'] == pytest.approx(t.false_alarms_50.mean())

def test_threshold_and_dropping_do_something(phantom, probs):
    base, strict = score_images(phantom, probs), score_images(phantom, probs, threshold=.8)
    assert (strict.tp + strict.fp).sum() < (base.tp + base.fp).sum()
    none = score_images(phantom, probs, drop_below=10**6)
    assert (none.tp + none.fp).sum() == 0 and summarize_scores(none)['found_10'] == 0

def test_names_and_order(phantom, probs):
    base, back = score_images(phantom, probs), np.arange(16)[::-1]
    pd.testing.assert_frame_equal(score_images(phantom, probs[back], names=phantom.image.iloc[back]), base)
    pd.testing.assert_frame_equal(score_images(phantom[3:6], list(probs), names=phantom.image), base[3:6].reset_index(drop=True))

def test_groups_add_up(phantom, probs):
    t = score_images(phantom, probs)
    for column in ('label', 'size_band'):
        g = by_group(t, column)
        assert g.images.sum() == 16 and g.lesions.sum() == t.lesions.sum()
        for name, row in g.iterrows():
            alone = summarize_scores(t[t[column] == name])
            assert row.to_dict() == pytest.approx(alone, nan_ok=True)
    assert by_group(t, 'label').index.tolist() == ['normal', 'benign', 'malignant']
    fold = by_group(t.assign(fold=np.arange(16) % 3), 'fold')
    assert fold.index.tolist() == [0, 1, 2]


def test_busi_has_662_lesions(busi_root):
    "And 25 slips of the pen, as the chapter says; a mask scored against itself is perfect."
    from busi_unetpp.dataset import merge_masks, read_mask
    lesions, parts = [], []
    for paths in read_busi(busi_root).query('label != "normal"').mask_paths:
        m = merge_masks([read_mask(p) for p in paths])
        lesions.append(len(lesion_ious(m, m)))
        parts.append(ndimage.label(m, np.ones((3, 3)))[1])
    lesions, parts = np.array(lesions), np.array(parts)
    assert (lesions.sum(), (parts - lesions).sum(), (parts > lesions).sum()) == (662, 25, 22)
