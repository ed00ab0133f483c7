"""The phantom: physics that theory predicts, reproducible bytes, BUSI's layout and traps, and refusals."""
import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image
from scipy.ndimage import label as components
from skimage.filters import threshold_otsu

from busi_unetpp import phantom
from busi_unetpp.dataset import BusiError, LABELS, read_busi, read_gray, read_mask
from busi_unetpp.phantom import (LESIONS, Probe, Tissue, add_lesion, beam, bmode, breast, class_counts, envelope, lesion_mask, log_compress,
    make_phantom, path_loss, psf, simulate, speckle)

N = 24

@pytest.fixture(scope='module')
def root(tmp_path_factory): return make_phantom(tmp_path_factory.mktemp('phantom')/'data', n=N)

def digest(folder): return {f.relative_to(folder).as_posix(): hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(folder.rglob('*.*'))}


# physics

@pytest.mark.parametrize('probe', [Probe(), Probe(frequency=5, focus=5), Probe(f_number=6)])
def test_speckle_is_rayleigh(probe):
    a = envelope(speckle(np.zeros((400, 400)), .2, np.random.default_rng(0), probe))
    assert a.mean()/a.std() == pytest.approx(np.sqrt(np.pi/(4-np.pi)), abs=.05)
    assert (a**2).mean() == pytest.approx(1, abs=.06)
    # Rayleigh's quantiles, for power 1: a = sqrt(-log(1-p))
    p = np.array([.1, .5, .9, .99])
    np.testing.assert_allclose(np.quantile(a, p), np.sqrt(-np.log(1-p)), rtol=.04)

def test_speckle_power_does_not_depend_on_depth():
    a = envelope(speckle(np.zeros((200, 3000)), .2, np.random.default_rng(0)))
    np.testing.assert_allclose((a**2).reshape(10, 20, -1).mean((1, 2)), 1, atol=.06)

def test_coherent_tissue_does_not_speckle():
    a = envelope(speckle(np.zeros((200, 200)), .2, np.random.default_rng(0), coherence=.95))
    assert a.std()/a.mean() < .2

def test_looks_average_in_power():
    assert envelope(np.stack([np.full((2, 2), 3j), np.full((2, 2), 4.)])) == pytest.approx(np.full((2, 2), np.sqrt(12.5)))

def test_beam_is_the_psf():
    mm, point = .05, np.zeros((61, 161), complex)
    point[30, 80] = 1
    fast = np.abs(beam(point, mm, Probe(focus=30.5*mm)))
    slow = np.abs(psf((np.arange(61)[:, None]-30)*mm, (np.arange(161)-80)*mm))
    np.testing.assert_allclose(fast/fast.max(), slow, atol=.01)

def test_beam_is_narrowest_at_the_focus():
    probe = Probe(focus=20)
    assert probe.lateral(20) < probe.lateral(10) == pytest.approx(probe.lateral(30))

@given(st.floats(1e-12, 1e3), st.floats(20, 100))
def test_log_compress_is_monotone_and_clipped(a, dynamic_range):
    low, mid, high, white = log_compress(np.array([0, a, 1.1*a, 1.]), dynamic_range)
    assert low == 0 and white == 255 and low <= mid <= high

def test_path_loss_is_there_and_back():
    slab = Tissue(np.zeros((100, 40)), np.full((100, 40), .5), np.zeros((100, 40)), .2)
    assert path_loss(slab, Probe(frequency=10))[-1, 0] == pytest.approx(2*10*.5*2)

def behind(kind):
    z, x = (np.indices((190, 230))+.5)*.2
    spot = np.hypot((z-14)/4.5, (x-23)/6) < 1
    def gray(i):
        t = breast(np.random.default_rng(i), spot.shape, .2)
        if kind: t = add_lesion(t, spot, kind, np.random.default_rng(i+100))
        return bmode(t, np.random.default_rng(i+200))[100:140, 102:128].mean()
    return np.mean([gray(i) for i in range(6)])

def test_posterior_signs():
    cyst, fibroadenoma, none, carcinoma = map(behind, ('cyst', 'fibroadenoma', None, 'carcinoma'))
    assert cyst > fibroadenoma > none > carcinoma and cyst-none > 10 and none-carcinoma > 10

@pytest.mark.parametrize('label, sign', [('benign', 1), ('malignant', -1)])
def test_posterior_signs_survive_all_that_varies(label, sign):
    diffs = []
    for image, (mask,) in (simulate(label, (5, i)) for i in range(24)):
        rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        below, quarter = image[rows[-1]+4:rows[-1]+28], len(cols)//4
        beside = np.r_[0:max(cols[0]-5, 0), cols[-1]+6:image.shape[1]]
        if len(below) >= 5 and len(beside) >= 10: diffs.append(below[:, cols[quarter]:cols[-1]-quarter+1].mean() - below[:, beside].mean())
    assert len(diffs) > 12 and sign*np.mean(diffs) > 8


# lesions and cases

def test_masks_by_kind():
    stats = {k: [] for k in LESIONS}
    for kind in LESIONS:
        for i in range(40):
            m = lesion_mask(kind, np.random.default_rng(i), (190, 230))
            assert m.dtype == bool and components(m)[1] == 1 and not m[[0, -1]].any()
            stats[kind].append((m.mean(), m.any(1).sum()/m.any(0).sum()))
    area, ratio = {k: np.mean(v, axis=0)[0] for k, v in stats.items()}, {k: np.median(v, axis=0)[1] for k, v in stats.items()}
    assert ratio['carcinoma'] > 1 > ratio['cyst'] > ratio['fibroadenoma'] - .2
    assert .12 < area['carcinoma'] < .19 and .03 < area['cyst'] < .1 and .04 < area['fibroadenoma'] < .11

@settings(max_examples=15, deadline=None)
@given(st.sampled_from(LABELS), st.integers(0, 2**63), st.tuples(st.integers(32, 140), st.integers(32, 140)), st.integers(1, 3))
def test_simulate(label, seed, shape, lesions):
    image, masks = simulate(label, seed, shape, lesions)
    assert image.dtype == np.uint8 and image.shape == shape and image.std() > 5
    assert len(masks) == (0 if label == 'normal' else lesions)
    for m in masks: assert m.dtype == np.uint8 and m.shape == shape and set(np.unique(m)) == {0, 1}
    if masks: assert np.sum(masks, axis=0).max() == 1
    again, masks_again = simulate(label, seed, shape, lesions)
    np.testing.assert_array_equal(image, again)
    np.testing.assert_array_equal(masks, masks_again)

def test_otsu_is_not_enough():
    scores = []
    for label in LABELS[1:]:
        for image, (mask,) in (simulate(label, (9, i)) for i in range(15)):
            dark = image < threshold_otsu(image)
            scores.append(2*(dark & (mask > 0)).sum()/(dark.sum()+mask.sum()))
    assert np.mean(scores) < .45

@pytest.mark.parametrize('args, message', [(('cat', 0), 'no such class'), (('benign', 0, (31, 64)), 'at least 32'), (('benign', 0, (64,)), 'at least 32'),
    (('benign', 0, (64, 64), 4), 'choose 1, 2 or 3')])
def test_simulate_refuses(args, message):
    with pytest.raises(BusiError, match=message): simulate(*args)


# the dataset on disk

@pytest.mark.parametrize('n', [3, 4, 12, 120, 780])
def test_class_counts(n):
    counts = class_counts(n)
    assert sum(counts.values()) == n and min(counts.values()) >= 1 and set(counts) == set(LABELS)
    if n == 780: assert counts == dict(normal=133, benign=437, malignant=210)

def test_layout_and_traps(root):
    df = read_busi(root).set_index('image')
    assert df.label.value_counts().to_dict() == class_counts(N)
    assert len({(r.height, r.width) for r in df.itertuples()}) > N/2
    assert df[['height', 'width']].min().min() >= 150 and df[['height', 'width']].max().max() <= 260
    for r in df.itertuples():
        assert read_gray(r.image_path).shape == (r.height, r.width)
        for p in r.mask_paths:
            m = read_mask(p)
            assert m.shape == (r.height, r.width) and m.any() == (r.label != 'normal')
            if r.label == 'normal': assert Image.open(p).mode == 'RGB'
    assert {Image.open(p).mode for p in df.image_path} == {'L', 'RGB', 'P', 'I;16'}
    modes = [Image.open(p).mode for ps in df.mask_paths for p in ps]
    assert set(modes) == {'1', 'RGB', 'RGBA'} and modes.count('RGBA') == 1
    assert sorted(df.mask_paths.map(len))[-2:] == [2, 3]

def test_every_mode_reads_as_the_same_pixels(root):
    for label, number in [('normal', 1), ('malignant', 1), ('benign', 1), ('benign', 4)]:
        path = root/label/f'{label} ({number}).png'
        height, width = read_gray(path).shape
        image, masks = simulate(label, (0, LABELS.index(label), number), (height, width))
        np.testing.assert_array_equal(read_gray(path), image)
        if masks: np.testing.assert_array_equal(read_mask(root/label/f'{label} ({number})_mask.png'), masks[0])

def test_same_bytes_and_independent_of_n(root, tmp_path):
    files, small = digest(root), digest(make_phantom(tmp_path/'small', n=7))
    del small['phantom.json']
    assert small.items() <= files.items()
    assert digest(make_phantom(tmp_path/'again', n=7)).items() >= small.items()
    other = digest(make_phantom(tmp_path/'other', n=7, seed=1))
    assert other['benign/benign (1).png'] != files['benign/benign (1).png']

def test_size_is_kept(tmp_path):
    df = read_busi(make_phantom(tmp_path/'a'/'b', n=4, size=(64, 80)))
    assert df[['height', 'width']].min().min() >= 64 and df[['height', 'width']].max().max() <= 80

def test_made_once_and_never_over_something_else(root, tmp_path):
    stamps = {f: f.stat().st_mtime_ns for f in root.rglob('*')}
    assert make_phantom(str(root), n=N) == root
    assert stamps == {f: f.stat().st_mtime_ns for f in root.rglob('*')}
    for changed in (dict(n=N+1), dict(n=N, seed=1), dict(n=N, size=(150, 261))):
        with pytest.raises(BusiError, match='another or an incomplete'): make_phantom(root, **changed)
    (tmp_path/'precious.txt').write_text('keep')
    with pytest.raises(BusiError, match='not empty'): make_phantom(tmp_path)
    with pytest.raises(BusiError): make_phantom(tmp_path/'precious.txt')
    assert (tmp_path/'precious.txt').read_text() == 'keep'

def test_damaged_phantom_is_not_reused(tmp_path):
    dest = make_phantom(tmp_path/'p', n=3, size=(64, 64))
    (dest/'benign'/'benign (1).png').unlink()
    with pytest.raises(BusiError, match='incomplete'): make_phantom(dest, n=3, size=(64, 64))
    (dest/'phantom.json').write_text('[')
    with pytest.raises(BusiError, match='no phantom'): make_phantom(dest, n=3, size=(64, 64))

def test_empty_folder_is_used(tmp_path):
    (tmp_path/'p').mkdir()
    assert json.loads((make_phantom(tmp_path/'p', n=3, size=(64, 64))/'phantom.json').read_text())['n'] == 3

@pytest.mark.parametrize('error', [KeyboardInterrupt, OSError(28, 'No space left on device')])
def test_interrupted_write_leaves_nothing(tmp_path, monkeypatch, error):
    real, calls = phantom.save_case, []
    def failing(*args):
        calls.append(args)
        if len(calls) == 3: raise error
        real(*args)
    monkeypatch.setattr(phantom, 'save_case', failing)
    with pytest.raises((KeyboardInterrupt, BusiError)): make_phantom(tmp_path/'p', n=6, size=(64, 64))
    assert len(calls) == 3 and list(tmp_path.iterdir()) == []

@pytest.mark.parametrize('bad', [dict(n=2), dict(n=0), dict(n=-5), dict(n=10.5), dict(n='many'), dict(n=None), dict(n=10**6), dict(seed=-1), dict(seed=.5),
    dict(size=(8, 100)), dict(size=(200, 100)), dict(size=(100, 5000)), dict(size=100), dict(size=(100,)), dict(size=(100, 120.5)), dict(size='ab')])
def test_bad_numbers(tmp_path, bad):
    with pytest.raises(BusiError, match=next(iter(bad))): make_phantom(tmp_path/'p', **bad)
    assert not (tmp_path/'p').exists()


# several at once, and killed ones

def start_phantom(dest, n=40):
    return subprocess.Popen([sys.executable, '-c', f'from busi_unetpp.phantom import make_phantom; print(make_phantom({str(dest)!r}, n={n}))'], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

def test_two_at_once_both_get_it(tmp_path):
    both = [start_phantom(tmp_path/'p') for _ in range(2)]
    for p in both:
        out, err = p.communicate()
        assert (p.returncode, out.strip()) == (0, str(tmp_path/'p')), err
    assert [p.name for p in tmp_path.iterdir()] == ['p'] and make_phantom(tmp_path/'p', n=40) == tmp_path/'p'

def test_what_a_killed_one_left_is_removed_by_the_next(tmp_path):
    p = start_phantom(tmp_path/'p', 3000)
    while not list(tmp_path.glob('.phantom-p-*')): assert p.poll() is None
    p.kill()
    p.wait()
    for stream in (p.stdout, p.stderr): stream.close()
    assert list(tmp_path.glob('.phantom-p*'))
    (tmp_path/'.phantom-q-mine').mkdir()                                        # of another one
    make_phantom(tmp_path/'p', n=3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['.phantom-q-mine', 'p']
