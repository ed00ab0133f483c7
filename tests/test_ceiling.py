"Agreement of outlines drawn twice: geometry on cases with a known answer, and the record."
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from skimage.draw import disk
from skimage.transform import AffineTransform

from busi_unetpp.ceiling import agreement, agreement_table, carry_mask, compare_outlines, compare_pair, measure_ceiling, same_picture_pairs, usable
from busi_unetpp.dataset import BusiError, read_busi
from busi_unetpp.duplicates import busi_groups

RECORDS = Path(__file__).parents[1]/'nbs'/'records'


def circle(y, x, r, shape=(120, 160)):
    a = np.zeros(shape, np.uint8)
    a[disk((y, x), r, shape=shape)] = 1
    return a


def test_a_shifted_outline_is_laid_back():
    a, b = circle(60, 80, 20), circle(50, 95, 20)
    found = compare_outlines(a, b, AffineTransform(translation=(15, -10)))
    assert found['dice'] == 1 and found['hd95'] == 0 and found['kept'] == 1 and found['size_band'] == 'medium'
    assert compare_outlines(a, b, AffineTransform())['dice'] < .8


def test_scale_and_a_rim_of_known_width():
    a, b = circle(60, 80, 20), circle(120, 160, 48, (240, 320))
    found = compare_outlines(a, b, AffineTransform(scale=2))
    assert found['dice'] == pytest.approx(2*400/(400 + 576), abs=.02) and found['assd'] == pytest.approx(4, abs=.6) and found['bigger'] == pytest.approx(1.44, abs=.05)


def test_only_the_overlap_counts():
    a = circle(60, 80, 30)
    right = a[:, 80:]
    found = compare_outlines(a, right, AffineTransform(translation=(-80, 0)))
    assert found['dice'] == 1 and found['kept'] == pytest.approx(.5, abs=.03)
    carried, seen = carry_mask(right, AffineTransform(translation=(-80, 0)), a.shape)
    assert not seen[:, :79].any() and seen[:, 81:].all() and not carried[:, :79].any()
    with pytest.raises(BusiError, match='do not overlap'): compare_outlines(a, a, AffineTransform(translation=(500, 0)))


def test_pairs_of_a_group_and_what_counts():
    groups = pd.DataFrame(dict(image=list('pqrst'), group=[0, 0, 0, 1, 2]))
    assert sorted(same_picture_pairs(groups)) == [('p', 'q'), ('p', 'r'), ('q', 'r')]
    pairs = pd.DataFrame(dict(a=['p', 'p', 'q'], b=['q', 'r', 'r'], ncc=[.99, .5, .99], lesion_a=True, lesion_b=[True, True, False], label_a='benign', label_b='benign', kept=1.,
        dice=[.9, .1, 0], iou=[.8, .05, 0], hd95=1., assd=1., size_band='small'))
    assert usable(pairs).dice.tolist() == [.9]
    one = agreement(usable(pairs), groups)
    assert one['groups'] == 1 and np.isnan(one['dice_low'])


def test_record_is_what_its_pairs_say():
    record, pairs = json.loads((RECORDS/'ceiling.json').read_text()), pd.read_csv(RECORDS/'ceiling_pairs.csv')
    again = agreement_table(pairs, busi_groups())
    stored = pd.DataFrame(record['agreement'])
    assert again[['by', 'value', 'pairs', 'groups']].values.tolist() == stored[['by', 'value', 'pairs', 'groups']].values.tolist()
    np.testing.assert_allclose(again[['dice', 'dice_low', 'dice_high', 'iou']], stored[['dice', 'dice_low', 'dice_high', 'iou']].astype(float), atol=2e-3)
    assert .8 < stored.dice[0] < .9 and record['usable'] == len(usable(pairs))


def test_another_dataset_needs_its_own_groups(small_phantom, tmp_path):
    with pytest.raises(BusiError, match="not BUSI's images"): measure_ceiling(small_phantom, tmp_path)
    (tmp_path/'bad.csv').write_text('image,group\n')
    with pytest.raises(BusiError, match="no column 'picture'"): measure_ceiling(small_phantom, tmp_path, tmp_path/'bad.csv')


@pytest.mark.skipif('BUSI_PATH' not in os.environ, reason='BUSI_PATH is not set, so the pairs are NOT tested on the real dataset')
def test_recorded_pairs_come_out_again():
    df = read_busi().set_index('image', drop=False)
    for r in pd.read_csv(RECORDS/'ceiling_pairs.csv').sample(2, random_state=0).itertuples():
        found = compare_pair([df.loc[r.a], df.loc[r.b]])
        assert abs(found['dice'] - r.dice) < .01
