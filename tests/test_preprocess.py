"""Resizing, merging and the cache: properties against slow references, and two processes that build the cache at once."""
import hashlib
import multiprocessing
import os
import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from busi_unetpp import preprocess
from busi_unetpp.dataset import BusiError, merge_masks, read_busi
from busi_unetpp.preprocess import SIZES, cache_folder, check_size, fingerprint, load_arrays, load_pair, resize_image, resize_mask

masks = st.tuples(st.integers(1, 40), st.integers(1, 40)).flatmap(lambda s: arrays(np.uint8, s, elements=st.integers(0, 1)))
sizes = st.integers(1, 50)


# masks and images

def share(mask, size):
    "Slow reference: the share of ones among the pixels whose center lies under each pixel of the result."
    h, w = mask.shape
    def under(n, i):
        c, half = (i + .5)*n/size, max(n/size, 1)/2
        return [k for k in range(n) if c - half < k + .5 <= c + half] or [int(c)]
    return np.array([[mask[np.ix_(under(h, y), under(w, x))].mean() for x in range(size)] for y in range(size)])

@settings(max_examples=30)
@given(masks, st.integers(1, 20))
def test_resized_mask_is_a_majority_vote(mask, size):
    got, want = resize_mask(mask, size), share(mask, size)
    clear = np.abs(want - .5) > .01                                           # a tie may fall either way
    assert got.shape == (size, size) and got.dtype == np.uint8 and set(np.unique(got)) <= {0, 1}
    np.testing.assert_array_equal(got[clear], want[clear] > .5)

@settings(max_examples=40)
@given(masks, sizes, st.data())
def test_a_larger_mask_stays_larger(mask, size, data):
    more = mask | data.draw(arrays(np.uint8, mask.shape, elements=st.integers(0, 1)))
    assert (resize_mask(mask, size) <= resize_mask(more, size)).all()

@settings(max_examples=20)
@given(sizes.flatmap(lambda n: arrays(np.uint8, (n, n), elements=st.integers(0, 1))), st.integers(1, 4))
def test_resizing_to_its_own_size_or_a_multiple_is_exact(mask, k):
    np.testing.assert_array_equal(resize_mask(mask, len(mask)), mask)
    np.testing.assert_array_equal(resize_mask(np.kron(mask, np.ones((k, k), np.uint8)), len(mask)), mask)
    np.testing.assert_array_equal(resize_image(mask*200, len(mask)), mask*200)

@settings(max_examples=30)
@given(st.tuples(st.integers(1, 40), st.integers(1, 40)).flatmap(lambda s: arrays(np.uint8, s)), sizes)
def test_resized_image_keeps_its_range_and_mirrors(image, size):
    r = resize_image(image, size)
    assert r.shape == (size, size) and r.dtype == np.uint8 and image.min() <= r.min() and r.max() <= image.max()
    np.testing.assert_allclose(resize_image(image[:, ::-1].copy(), size)[:, ::-1].astype(int), r, atol=1)
    np.testing.assert_array_equal(resize_image(image.T.copy(), size).shape, r.shape)

def test_image_and_mask_stay_aligned():
    square = np.zeros((300, 400), np.uint8)
    square[60:180, 100:300] = 1
    image, mask = resize_image(square*255, 196), resize_mask(square, 196)
    assert ((image > 127) == (mask > 0)).mean() > .995
    np.testing.assert_allclose(np.argwhere(image > 127).mean(0), np.argwhere(mask).mean(0), atol=.5)

def test_shrinking_an_image_averages_it():
    board = np.indices((400, 400)).sum(0).astype(np.uint8) % 2*255
    assert np.abs(resize_image(board, 50).astype(int) - 127).max() <= 4       # without antialiasing it would be black and white

stacks = st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 5)).flatmap(lambda s: arrays(np.uint8, (s[2], s[0], s[1]), elements=st.integers(0, 1)))

@settings(max_examples=40)
@given(stacks, st.randoms(use_true_random=False))
def test_merging_is_the_union(stack, rnd):
    merged, shuffled = merge_masks(list(stack)), list(stack)
    rnd.shuffle(shuffled)
    np.testing.assert_array_equal(merged, stack.any(0))
    np.testing.assert_array_equal(merge_masks(shuffled), merged)
    np.testing.assert_array_equal(merge_masks([merged, *stack]), merged)
    assert merged.dtype == np.uint8

def test_256_masks_do_not_add_up_to_none():
    assert merge_masks([np.ones((2, 2), np.uint8)]*256).tolist() == [[1, 1], [1, 1]]

@given(st.one_of(st.integers(), st.floats(), st.text(max_size=3), st.none(), st.booleans()))
@settings(max_examples=60)
def test_a_size_is_a_whole_number_in_range(size):
    if isinstance(size, int) and SIZES[0] <= size <= SIZES[1]: assert check_size(size) == size
    else:
        with pytest.raises(BusiError, match='from 48 to 1024'): check_size(size)

def test_numpy_sizes_are_sizes():
    assert type(check_size(np.int64(96))) is int


# arrays and their cache

@pytest.fixture
def data(small_phantom, tmp_path, monkeypatch):
    "A copy of the phantom that a test may damage, and a cache of its own."
    monkeypatch.setenv('BUSI_CACHE', str(tmp_path/'cache'))
    return Path(shutil.copytree(small_phantom, tmp_path/'data'))

def forbid(monkeypatch):
    def load_pair(*args): raise AssertionError('decoded again')
    monkeypatch.setattr(preprocess, 'load_pair', load_pair)

def repaint(path, value):
    "Another picture of the same size under the same name, later."
    old = path.stat()
    Image.fromarray(np.full_like(np.asarray(Image.open(path).convert('L')), value)).save(path)
    os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns + 1_000_000))

def test_arrays_follow_the_table(data):
    df = read_busi(data).sample(frac=1, random_state=3)
    images, masks = load_arrays(df, 48)
    for i, r in enumerate(df.itertuples()):
        image, mask = load_pair(r.image_path, r.mask_paths, 48)
        np.testing.assert_array_equal(images[i], image)
        np.testing.assert_array_equal(masks[i], mask)
    assert images.dtype == masks.dtype == np.uint8 and df.mask_paths.map(len).max() > 1

def test_the_second_start_decodes_nothing(data, monkeypatch):
    first = load_arrays(read_busi(data), 48)
    forbid(monkeypatch)
    for a, b in zip(first, load_arrays(read_busi(data), 48)): np.testing.assert_array_equal(a, b)
    with pytest.raises(AssertionError): load_arrays(read_busi(data), 48, cache=False)
    with pytest.raises(AssertionError): load_arrays(read_busi(data), 49)      # another size
    with pytest.raises(AssertionError): load_arrays(read_busi(data)[1:], 48)  # other images

def test_without_cache_nothing_is_written(data):
    load_arrays(read_busi(data), 48, cache=False)
    assert not cache_folder().exists()

@pytest.mark.parametrize('change', ['mask', 'image', 'touched', 'new mask', 'removed mask', 'renamed'])
def test_any_change_of_a_file_is_noticed(change, data, monkeypatch):
    df = read_busi(data)
    i = int(df.mask_paths.map(len).argmax())                                  # one with several masks
    image, mask = df.image_path[i], df.mask_paths[i][0]
    before, key = load_arrays(df, 48), fingerprint(df)
    if change == 'mask': repaint(mask, 255)
    if change == 'image': repaint(image, 7)
    if change == 'touched': os.utime(mask, ns=(0, mask.stat().st_mtime_ns + 1))
    if change == 'new mask': Image.fromarray(np.full_like(np.asarray(Image.open(mask).convert('L')), 255)).save(mask.with_name(f'{image.stem}_mask_9.png'))
    if change == 'removed mask': df.mask_paths[i][-1].unlink()
    if change == 'renamed':
        for p in (image, *df.mask_paths[i]): p.rename(p.with_name(p.name.replace('(', '(9')))
    df = read_busi(data)
    after, fresh = load_arrays(df, 48), load_arrays(df, 48, cache=False)
    assert fingerprint(df) != key
    for a, b in zip(after, fresh): np.testing.assert_array_equal(a, b)
    if change in ('mask', 'new mask'): assert after[1][i].all() and not before[1][i].all()
    if change == 'image': assert (after[0][i] == 7).all()
    forbid(monkeypatch)
    load_arrays(df, 48)                                                       # and the cache is good again

@pytest.mark.parametrize('damage', [lambda d: b'', lambda d: d[:len(d)//2], lambda d: b'not a cache', lambda d: d[:-200] + bytes(200)], ids=['empty', 'cut', 'other', 'tail'])
def test_a_damaged_cache_is_made_again(damage, data, monkeypatch):
    df = read_busi(data)
    first, (path,) = load_arrays(df, 48), list(cache_folder().iterdir())
    path.write_bytes(damage(path.read_bytes()))
    for a, b in zip(first, load_arrays(df, 48)): np.testing.assert_array_equal(a, b)
    forbid(monkeypatch)
    load_arrays(df, 48)

def test_a_cache_of_an_older_format_is_not_used(data, monkeypatch):
    load_arrays(read_busi(data), 48)
    monkeypatch.setattr(preprocess, 'CACHE_FORMAT', preprocess.CACHE_FORMAT + 1)
    forbid(monkeypatch)
    with pytest.raises(AssertionError, match='decoded again'): load_arrays(read_busi(data), 48)

def test_a_cache_that_cannot_be_written_only_warns(data, monkeypatch, tmp_path):
    (tmp_path/'file').touch()
    monkeypatch.setenv('BUSI_CACHE', str(tmp_path/'file'/'cache'))
    with pytest.warns(UserWarning, match='not cached'): images, _ = load_arrays(read_busi(data), 48)
    np.testing.assert_array_equal(images, load_arrays(read_busi(data), 48, cache=False)[0])

def test_the_caches_place(monkeypatch, tmp_path):
    monkeypatch.delenv('BUSI_CACHE')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    assert cache_folder() == tmp_path/'busi_unetpp'
    monkeypatch.setenv('HOME', str(tmp_path/'home'))
    monkeypatch.setenv('BUSI_CACHE', '~/c')
    assert cache_folder() == tmp_path/'home'/'c'

@pytest.mark.parametrize('fault, why', [('cut', 'truncated'), ('gray', 'not black and white'), ('size', 'the mask is 3x2')])
def test_a_file_that_cannot_be_used_is_named(fault, why, data):
    df = read_busi(data)
    path = df.mask_paths[5][0]
    if fault == 'cut': path.write_bytes(path.read_bytes()[:-30])
    if fault == 'gray': Image.fromarray(np.arange(df.width[5]*df.height[5]).reshape(df.height[5], -1).astype(np.uint8)).save(path)
    if fault == 'size': Image.new('L', (3, 2)).save(path)
    with pytest.raises(BusiError, match=why) as e: load_arrays(df, 48)
    assert str(path) in str(e.value) and not cache_folder().exists()

def test_an_empty_table_is_refused(data):
    with pytest.raises(BusiError, match='No images'): load_arrays(read_busi(data)[:0], 48)

@pytest.mark.skipif(sys.platform != 'linux', reason='other systems do not allow such names')
def test_file_names_that_are_not_utf8(data):
    for name in (b'\xff.png', b'\xff_mask.png'): (data/'benign'/os.fsdecode(name)).write_bytes((data/'normal/normal (2)_mask.png').read_bytes())
    try: assert load_arrays(read_busi(data), 48)[0].shape == (17, 48, 48)
    except BusiError as e: assert 'benign' in str(e)                            # refusing the name would be right as well

def build(barrier, queue, root, rounds):
    "What each of two processes does: build the same cache at the same moment, again and again."
    df = read_busi(root)
    for _ in range(rounds):
        barrier.wait(60)
        shutil.rmtree(cache_folder(), ignore_errors=True)
        barrier.wait(60)
        with warnings.catch_warnings(record=True) as said: arrays = load_arrays(df, 48)
        queue.put('; '.join(str(w.message) for w in said) or hashlib.sha256(b''.join(a.tobytes() for a in arrays)).hexdigest())

def test_two_processes_build_the_cache_at_once(data, monkeypatch):
    ctx, rounds = multiprocessing.get_context('spawn'), 8
    barrier, queue = ctx.Barrier(2), ctx.Queue()
    processes = [ctx.Process(target=build, args=(barrier, queue, data, rounds)) for _ in range(2)]
    for p in processes: p.start()
    digests = [queue.get(timeout=90) for _ in range(2*rounds)]
    for p in processes: p.join(30)
    assert [p.exitcode for p in processes] == [0, 0] and len(set(digests)) == 1, set(digests)
    df = read_busi(data)
    assert len(list(cache_folder().iterdir())) == 1                                           # and no half-written file beside it
    forbid(monkeypatch)
    assert hashlib.sha256(b''.join(a.tobytes() for a in load_arrays(df, 48))).hexdigest() == digests[0]

def test_real_busi_as_the_network_sees_it(busi_root):
    df = read_busi(busi_root).groupby('label').head(3)
    images, masks = load_arrays(df, 96, cache=False)
    assert images.std(axis=(1, 2)).min() > 5 and set(np.unique(masks)) == {0, 1}
    assert (masks.any(axis=(1, 2)) == (df.label != 'normal')).all()
