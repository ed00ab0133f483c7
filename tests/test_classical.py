"Classical baselines: they find what is drawn, they give nothing where nothing can be found, and the record is what its rows say."
import json
import os
import re
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import typer
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import gaussian_filter
from typer.testing import CliRunner

from busi_unetpp.classical import BASELINES, HEIGHT, METRICS, SCORES, SPREAD, best_region, contrast, development_images, held_out, main, rate, score_case, segment, smooth, summarize_baselines
from busi_unetpp.dataset import BusiError, LABELS, read_busi

RECORDS = Path(__file__).parents[1]/'nbs'/'records'
LOOKING = ['Otsu', 'region growing', 'Chan-Vese']


def picture(shape=(300, 380), at=(.35, .55), axes=(.14, .18), inside=40, outside=120, seed=0):
    "A dark ellipse in speckled tissue, and its mask."
    y, x = np.mgrid[:shape[0], :shape[1]]
    mask = ((y/shape[0] - at[0])/axes[0])**2 + ((x/shape[1] - at[1])/axes[1])**2 <= 1
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.5)
    return np.clip(np.where(mask, inside, outside) + 60*noise, 0, 255).astype(np.uint8), mask.astype(np.uint8)


def dice(a, b): return 2*(a & b).sum()/max(a.sum() + b.sum(), 1)


@pytest.mark.parametrize('name', LOOKING)
def test_finds_a_dark_ellipse(name):
    image, mask = picture()
    assert dice(BASELINES[name](image), mask) > .85
    assert dice(BASELINES['center ellipse'](image), mask) < .75, 'the ellipse in the middle would do as well'


@pytest.mark.parametrize('name', LOOKING)
def test_follows_the_lesion(name):
    for at in ((.3, .35), (.45, .62)):
        image, mask = picture(at=at)
        found = BASELINES[name](image)
        assert dice(found, mask) > .6 and (found & mask).sum() > .9*found.sum(), at


@pytest.mark.parametrize('name', LOOKING)
def test_size_mirror_and_brightness_change_little(name):
    image, _ = picture()
    mask = BASELINES[name](image)
    assert dice(BASELINES[name](image[:, ::-1])[:, ::-1], mask) > .95
    assert dice(BASELINES[name](np.kron(image, np.ones((2, 2), np.uint8)))[::2, ::2], mask) > .95
    assert dice(BASELINES[name](image//2 + 60), mask) > .95


@pytest.mark.parametrize('name', LOOKING)
def test_bright_lesions_and_shadows_at_the_border_are_not_taken(name):
    image, mask = picture(inside=220, outside=90)
    assert dice(BASELINES[name](image), mask) < .1
    shadow = np.full((200, 240), 150, np.uint8)
    shadow[60:, 90:140] = 30
    found = BASELINES[name](shadow)
    assert not found[[0, -1]].any() and not found[:, [0, -1]].any()
    shadow[:, :] = np.linspace(30, 200, 240)                   # dark to one side, and no edge
    assert not BASELINES[name](shadow).any()


@pytest.mark.parametrize('name', BASELINES)
@pytest.mark.parametrize('image', [np.zeros((200, 300)), np.full((200, 300), 255), np.zeros((1, 1)), np.arange(900).reshape(30, 30) % 256, np.arange(2000).reshape(1, 2000) % 256],
    ids=['black', 'white', 'pixel', 'tiny', 'line'])
def test_nothing_on_flat_and_tiny_images(name, image):
    mask = BASELINES[name](image.astype(np.uint8))
    assert mask.shape == image.shape and mask.dtype == np.uint8 and not mask.any()


@settings(max_examples=25)
@given(arrays(np.uint8, st.tuples(st.integers(1, 48), st.integers(1, 48)), elements=st.sampled_from([0, 1, 128, 255])))
def test_any_picture_gives_a_mask_and_no_warning(image):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for name, baseline in BASELINES.items():
            mask = baseline(image)
            assert mask.shape == image.shape and mask.dtype == np.uint8 and mask.max() <= 1, name


@pytest.mark.parametrize('image', [np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64)), np.zeros(64, np.uint8)])
def test_refuses_what_is_no_gray_image(image):
    with pytest.raises(BusiError, match='uint8'): BASELINES['Otsu'](image)


def test_at_most_one_region_and_it_could_be_a_lesion():
    image, _ = picture()
    gray = smooth(image)
    for cut in (60, 90, 120, 150):
        region = best_region(gray < cut, gray)
        assert not region.any() or rate(region, gray) >= 10
    assert rate(np.ones(gray.shape, bool), gray) == 0 and contrast(np.zeros(gray.shape, bool), gray) == 0
    assert segment(image, lambda g: np.ones(g.shape, bool)).all()


def test_command_says_what_is_wrong(tmp_path):
    app = typer.Typer()
    app.command()(main)
    done = CliRunner().invoke(app, [str(tmp_path/'nowhere')])
    assert done.exit_code == 1 and 'no such folder' in done.output and 'Traceback' not in done.output


@pytest.fixture(scope='module')
def rows(): return pd.read_csv(RECORDS/'classical.csv')


@pytest.fixture(scope='module')
def record(): return json.loads((RECORDS/'classical.json').read_text())


def test_record_has_every_image_and_baseline(rows, record):
    assert len(rows) == 780*len(BASELINES) and record['images'] == 780 and 1 < record['groups'] < record['held_out'] < 720
    assert list(rows.columns) == ['image', 'label', 'baseline', *SCORES, 'held_out']
    assert rows.groupby('baseline').image.nunique().to_dict() == {name: 780 for name in BASELINES}
    assert (rows.groupby(['baseline', 'image'])[['tp', 'fn']].sum().sum(axis=1).unstack(0).nunique(axis=1) == 1).all(), 'baselines were scored against different masks'
    assert not re.search(r'/root|/work|/home|/tmp', json.dumps(record)) and record['commit'] and record['versions']['scikit-image']


def test_record_is_what_its_rows_say(rows, record):
    s = pd.DataFrame(record['summary']).set_index(['baseline', 'label', 'metric'])
    assert set(s.index.levels[2]) == set(METRICS) and set(s.index.levels[1]) == {'all', *LABELS}
    for name, g in rows[rows.held_out].groupby('baseline'):
        tumor = g[g.area > 0]
        assert s.value[name, 'all', 'image_dice'] == pytest.approx(g.dice.mean(), abs=1e-4)
        assert s.value[name, 'all', 'image_dice_with_tumor'] == pytest.approx(tumor.dice.mean(), abs=1e-4)
        assert s.value[name, 'all', 'tumor_dice'] == pytest.approx(2*g.tp.sum()/(2*g.tp + g.fp + g.fn).sum(), abs=1e-4)
        assert s.value[name, 'normal', 'clean_normals'] == pytest.approx((g[g.label == 'normal'].fp == 0).mean(), abs=1e-4)
        assert s.value[name, 'malignant', 'found_50'] == pytest.approx(g[g.label == 'malignant'].found_50.sum()/g[g.label == 'malignant'].lesions.sum(), abs=1e-4)
    assert (s.low <= s.value + 1e-4).all() and (s.value <= s.high + 1e-4).all()


def test_development_images_are_drawn_by_the_seed_and_not_scored(rows, record):
    images = rows.drop_duplicates('image')
    assert development_images(images) == record['development'] and len(record['development']) == 60
    assert not rows.held_out[rows.image.isin(record['development'])].any()
    best = max(record['sweep'], key=lambda r: r['dice'])
    assert (best['height'], best['spread']) == (HEIGHT, SPREAD), 'the constants are not those that were best on the development images'


def test_intervals_of_the_record_come_from_busis_groups(rows, record):
    from busi_unetpp.duplicates import busi_groups
    groups = busi_groups()
    assert record['held_out'] == len(kept := held_out(groups, record['development'])) and set(rows.image[rows.held_out]) == set(kept)
    again = summarize_baselines(rows[(rows.baseline == 'Otsu') & rows.held_out], groups)
    stored = pd.DataFrame([r for r in record['summary'] if r['baseline'] == 'Otsu'])
    pd.testing.assert_frame_equal(again.round(4), stored, check_dtype=False, atol=2e-4)


@pytest.mark.skipif('BUSI_PATH' not in os.environ, reason='BUSI_PATH is not set, so the real dataset is NOT tested: set it to the folder of BUSI')
def test_record_of_busi_is_what_the_images_give(rows):
    df = read_busi().iloc[::150]
    for r in df.itertuples():
        stored = rows[rows.image == r.image].set_index('baseline')
        for case in score_case(r.image_path, r.mask_paths):
            assert case['dice'] == pytest.approx(stored.dice[case['baseline']], abs=.01), (r.image, case['baseline'])
