"""Reading BUSI: every PNG mode alike, no file that can crash the reader, and every faulty file named."""
import io
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from busi_unetpp.dataset import LABELS, BusiError, find_problems, find_root, measure_tumors, open_image, read_busi, read_gray, read_mask, summarize
from busi_unetpp.preprocess import load_pair

small = st.tuples(st.integers(1, 9), st.integers(1, 9))
gray_arrays = small.flatmap(lambda s: arrays(np.uint8, s))
mask_arrays = small.flatmap(lambda s: arrays(np.uint8, s, elements=st.integers(0, 1)))

def png(im, **kw):
    "The bytes of an image, or of an array, as a PNG."
    out = io.BytesIO()
    (im if isinstance(im, Image.Image) else Image.fromarray(im)).save(out, 'PNG', **kw)
    return out.getvalue()

def in_file(read, data):
    "What `read` makes of a file with these bytes."
    with tempfile.TemporaryDirectory() as tmp:
        path = Path(tmp)/'x.png'
        path.write_bytes(data)
        return read(path)

def palette(a, seed=0):
    "A palette image of gray levels whose indices have nothing to do with the levels."
    perm = np.random.default_rng(seed).permutation(256).astype(np.uint8)
    im = Image.fromarray(np.argsort(perm).astype(np.uint8)[a])
    im.putpalette(np.repeat(perm, 3).tobytes())
    return im

def encodings(a):
    "A gray picture in every mode that holds it without loss."
    im = Image.fromarray(a)
    yield from ((m, png(im.convert(m))) for m in ('L', 'LA', 'RGB', 'RGBA', 'P'))
    yield 'shuffled palette', png(palette(a))
    yield '16-bit', png(a.astype(np.uint16)*257)
    yield 'text chunks', png(im, dpi=(72, 72), optimize=True)


# pixels

@settings(max_examples=20)
@given(gray_arrays)
def test_every_mode_reads_the_same(a):
    for mode, data in encodings(a): np.testing.assert_array_equal(in_file(read_gray, data), a, err_msg=mode)

@settings(max_examples=20)
@given(mask_arrays)
def test_a_mask_reads_the_same_in_every_mode(m):
    bits = Image.fromarray(m*255).convert('1')
    two = Image.fromarray(1 - m)                                             # a 1-bit palette, white first
    two.putpalette([255]*3 + [0]*3)
    for mode, data in [*encodings(m*255), ('1-bit', png(bits)), ('1-bit palette', png(two, bits=1)), ('0 and 1', png(m))]:
        got = in_file(read_mask, data)
        np.testing.assert_array_equal(got, m, err_msg=mode)
        assert got.dtype == np.uint8

@settings(max_examples=20)
@given(arrays(np.uint16, (3, 4)))
def test_16_bit_is_rounded_to_the_nearest_level(a):
    assert np.abs(in_file(read_gray, png(a)).astype(float)*257 - a).max() <= 257/2

@settings(max_examples=20)
@given(arrays(np.uint8, (3, 4)), arrays(np.uint8, (3, 4)))
def test_transparency_lies_on_black(gray, alpha):
    got = in_file(read_gray, png(Image.fromarray(np.dstack([gray]*3 + [alpha]), 'RGBA')))
    np.testing.assert_allclose(got, gray*(alpha/255.), atol=1)

@settings(max_examples=60)
@given(st.lists(st.sampled_from([0, 1, 2, 100, 127, 128, 254, 255]), min_size=1, max_size=3))
def test_a_mask_is_two_levels_or_refused(levels):
    a, allowed = np.array([levels], np.uint8), set(levels) <= {0, 1} or set(levels) <= {0, 255}
    if allowed: np.testing.assert_array_equal(in_file(read_mask, png(a)), [[v > 0 for v in levels]])
    else:
        with pytest.raises(BusiError, match=r'x\.png: the mask is not black and white'): in_file(read_mask, png(a))

def test_16_bit_mask_of_zeros_and_ones_is_not_lost():
    try: assert in_file(read_mask, png(np.array([[0, 1]], np.uint16))).tolist() == [[0, 1]]
    except BusiError: pass                                                   # refusing it would be right as well

@pytest.mark.parametrize('mode', ['L', 'RGBA', 'P', '16-bit', '1'])
def test_a_file_cut_anywhere_is_refused_or_whole(mode, tmp_path):
    a = np.random.default_rng(0).integers(0, 2, (7, 9), dtype=np.uint8)*255
    data = dict(encodings(a), **{'1': png(Image.fromarray(a).convert('1'))})[mode]
    refused, path = 0, tmp_path/'cut.png'
    for n in range(len(data)):
        path.write_bytes(data[:n])
        try: np.testing.assert_array_equal(read_gray(path), a)                # never other pixels
        except BusiError as e:
            refused += 1
            assert str(path) in str(e)
    assert refused > len(data)/2

@settings(max_examples=150)
@given(st.data())
def test_damaged_bytes_raise_nothing_but_busi_error(data):
    good = bytearray(png(np.arange(63, dtype=np.uint8).reshape(7, 9)))
    for _ in range(data.draw(st.integers(1, 4))): good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    for read in (read_gray, read_mask):
        try: assert in_file(read, bytes(good)).ndim == 2
        except BusiError: pass

@settings(max_examples=30)
@given(st.binary(max_size=200))
def test_any_bytes_raise_busi_error(data):
    with pytest.raises(BusiError, match=r'x\.png'): in_file(read_gray, data)

@pytest.mark.parametrize('what, why', [('missing', 'no such file'), ('folder', 'not an image'), ('link', 'no such file'), ('zero', 'empty')])
def test_what_is_not_a_file(what, why, tmp_path):
    path = tmp_path/'x.png'
    if what == 'folder': (path/'sub').mkdir(parents=True)
    if what == 'link': path.symlink_to(tmp_path/'gone')
    if what == 'zero': path.touch()
    with pytest.raises(BusiError, match=why): open_image(path)


# folders

with tempfile.TemporaryDirectory() as _tmp:
    (Path(_tmp)/'a').touch()
    CASE = not (Path(_tmp)/'A').exists()  # does this disk tell A from a?

GOOD, MASK = png(np.full((20, 24), 90, np.uint8)), png(np.eye(20, 24, dtype=np.uint8)*255)
NOISE = png(np.random.default_rng(1).integers(0, 256, (20, 24), dtype=np.uint8))  # damage to it shows
BAD = {'empty': b'', 'text': b'this is no picture', 'header cut': NOISE[:20], 'cut': NOISE[:len(NOISE)//2],
       'size': png(np.zeros((20, 23), np.uint8)), 'gray': png(np.arange(480, dtype=np.uint8).reshape(20, 24))}
HEADER, PIXELS = ('empty', 'text', 'header cut', 'folder'), ('cut', 'gray')  # where a fault shows
TWIN = ['twin'] if CASE else []

images = st.sampled_from(['fine']*3 + ['absent', 'empty', 'text', 'header cut', 'cut', 'folder'] + TWIN)
mask_lists = st.lists(st.sampled_from(['fine']*3 + ['empty', 'text', 'header cut', 'cut', 'size', 'gray', 'folder'] + TWIN), max_size=2)
cases = st.lists(st.tuples(st.sampled_from(LABELS), images, mask_lists), max_size=6)

def put(root, file, state, good):
    "Write one file in some state; returns the problems that it has by itself, as `(file, problem, level)`."
    path = root/file
    if state == 'folder': (path/'sub').mkdir(parents=True)
    else: path.write_bytes(BAD.get(state, good))
    if state == 'twin':
        twin = path.with_name(path.name.upper().replace('_MASK', '_mask').replace('.PNG', '.png'))
        twin.write_bytes(good)
        return {(f'{path.parent.name}/{p.name}', 'duplicate name', 'header') for p in (path, twin)}
    if state in HEADER: return {(file, 'unreadable', 'header')}
    if state in PIXELS: return {(file, 'not black and white' if state == 'gray' else 'unreadable', 'pixels')}
    return set()

def put_case(root, i, label, image, masks):
    "Write an image with its masks, each in its state; returns all problems that this makes."
    stem, problems, names = f'{label}/case ({i})', set(), []
    if image != 'absent': problems |= put(root, f'{stem}.png', image, NOISE)
    for j, state in enumerate(masks):
        file = f"{stem}_mask{f'_{j}' if j else ''}.png"
        found = put(root, file, state, MASK)
        names += sorted({f for f, p, _ in found if p == 'duplicate name'} | {file})
        if state == 'size' and image not in ('absent', *HEADER): found |= {(file, 'mask of another size', 'header')}
        problems |= found
    if image == 'absent': problems |= {(f, 'mask without image', 'header') for f in names}
    elif not masks:
        pictures = {f for f, p, _ in problems if p == 'duplicate name'} | {f'{stem}.png'}
        problems |= {(f, 'image without mask', 'header') for f in pictures}
    return problems

def dataset(tmp):
    for label in LABELS: (tmp/label).mkdir(parents=True)
    (tmp/'normal/good.png').write_bytes(GOOD)
    (tmp/'normal/good_mask.png').write_bytes(MASK)
    return tmp

@settings(max_examples=40)
@given(cases, st.booleans())
def test_any_mixture_of_faults_is_named_file_by_file(mixture, across):
    with tempfile.TemporaryDirectory() as tmp, warnings.catch_warnings():
        warnings.simplefilter('ignore')
        root, want = dataset(Path(tmp)/'data'), set()
        for i, case in enumerate(mixture): want |= put_case(root, i, *case)
        if across:
            for file in ('benign/shared.png', 'malignant/Shared.png'):
                want |= put(root, file, 'fine', GOOD) | put(root, file.replace('.png', '_mask.png'), 'fine', MASK) | {(file, 'duplicate name', 'header')}
        shown = {(f, p) for f, p, level in want if level == 'header'}
        found = find_problems(root)
        assert sorted(zip(found.file, found.problem)) == sorted((f, p) for f, p, _ in want)
        assert found.remedy.str.len().min() > 10 if len(found) else True
        quick = find_problems(root, decode=False)
        assert set(zip(quick.file, quick.problem)) == shown
        assert summarize(root)['problems'] == found.to_dict('records')
        if shown:
            with pytest.raises(BusiError) as e: read_busi(root)
            named = [f for f, _ in shown if f in str(e.value)]
            assert f'{len(shown)} problem(s)' in str(e.value) and len(set(named)) >= min(len({f for f, _ in shown}), 5)
            if len(shown) <= 10: assert len(named) == len(shown)
        else: assert len(read_busi(root)) == len(list(root.glob('*/*).png'))) + 1
        check_kept(root, read_busi(root, strict=False), shown, want)

def check_kept(root, df, shown, want):
    "What is left of a faulty dataset: no image that a problem of the header touches; of the others, damaged pixels are found on loading."
    stem = lambda f: f.split('_mask')[0].removesuffix('.png').lower()
    bad = {stem(f) for f, _ in shown}
    everything = {stem(f'{p.parent.name}/{p.name}') for p in root.glob('*/*.png')}
    assert {stem(f) for f in df.image} == everything - bad and df.image.is_unique
    damaged = {f for f, _, level in want if level == 'pixels'}
    for r in df.itertuples():
        files = [r.image, *(f'{r.label}/{p.name}' for p in r.mask_paths)]
        assert len(files) > 1 and {stem(f) for f in files} == {stem(r.image)} and (r.width, r.height) == (24, 20)
        if hit := damaged & set(files):
            with pytest.raises(BusiError) as e: load_pair(r.image_path, r.mask_paths, 48)
            assert any(Path(f).name in str(e.value) for f in hit)
        else: assert load_pair(r.image_path, r.mask_paths, 48)[1].shape == (48, 48)

def test_leaving_out_is_said_aloud(tmp_path):
    put_case(dataset(tmp_path), 1, 'benign', 'text', ['fine'])
    with pytest.warns(UserWarning, match=r'(?s)case \(1\)\.png: unreadable.*left out'): assert read_busi(tmp_path, strict=False).image.tolist() == ['normal/good.png']

def test_many_problems_are_counted_and_the_first_ten_shown(tmp_path):
    dataset(tmp_path)
    for i in range(14): put_case(tmp_path, i, 'benign', 'fine', [])
    with pytest.raises(BusiError, match=r'(?s)14 problem\(s\).*\.\.\. and 4 more') as e: read_busi(tmp_path)
    assert str(e.value).count('image without mask') == 10

@pytest.mark.parametrize('make, why', [
    ([], 'no BUSI dataset here'), (['benign/', 'malignant/'], 'no BUSI dataset here'), (['benign', 'malignant', 'normal'], 'no BUSI dataset here'),
    (['photos/1.png', 'photos/2.png'], 'no BUSI dataset here'), (['a/b/benign/', 'a/b/malignant/', 'a/b/normal/'], 'no BUSI dataset here'),
    (['benign/', 'malignant/', 'normal/'], 'hold no PNG images'), (['benign/x.jpg', 'malignant/', 'normal/._x.png'], 'hold no PNG images')])
def test_empty_and_wrong_folders(make, why, tmp_path):
    for f in make:
        (tmp_path/f).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/f).mkdir() if f.endswith('/') else (tmp_path/f).write_bytes(GOOD)
    for read in (read_busi, find_problems, summarize):
        with pytest.raises(BusiError, match=why) as e: read(tmp_path)
        assert str(tmp_path) in str(e.value)

def test_a_file_is_no_dataset(tmp_path):
    (tmp_path/'benign.zip').write_bytes(b'PK')
    with pytest.raises(BusiError, match='benign.zip: no such folder'): read_busi(tmp_path/'benign.zip')

def test_root_from_the_environment_and_from_above(tmp_path, monkeypatch):
    root = dataset(tmp_path/'Dataset_BUSI_with_GT')
    monkeypatch.setenv('BUSI_PATH', str(tmp_path))
    assert find_root() == find_root(root) == find_root(tmp_path) == root
    assert read_busi().equals(read_busi(root))
    monkeypatch.delenv('BUSI_PATH')
    with pytest.raises(BusiError, match='BUSI_PATH'): read_busi()

@settings(max_examples=15)
@given(st.sets(st.integers(0, 3000), min_size=2, max_size=8), st.randoms(use_true_random=False))
def test_images_come_in_natural_order_with_their_own_masks(numbers, rnd):
    with tempfile.TemporaryDirectory() as tmp:
        root, order = dataset(Path(tmp)/'d'), list(numbers)
        rnd.shuffle(order)
        count = {n: rnd.randrange(1, 13) for n in order}
        for n in order:
            for name in (f'benign ({n}).png', f'benign ({n})_mask.png', *(f'benign ({n})_mask_{j}.png' for j in range(1, count[n]))):
                (root/'benign'/name).write_bytes(GOOD if 'mask' not in name else MASK)
        df = read_busi(root).query('label == "benign"')
        assert df.image.tolist() == [f'benign/benign ({n}).png' for n in sorted(numbers)]
        for n, paths in zip(sorted(numbers), df.mask_paths):
            assert [p.name for p in paths] == [f"benign ({n})_mask{f'_{j}' if j else ''}.png" for j in range(count[n])]

def test_other_files_are_passed_over(tmp_path):
    dataset(tmp_path)
    for f in ('benign/Thumbs.db', 'benign/._a.png', 'benign/notes.txt', 'readme.png', 'benign/a.jpg'): (tmp_path/f).write_bytes(b'x')
    (tmp_path/'benign/UPPER.PNG').write_bytes(GOOD)
    (tmp_path/'benign/UPPER_mask.PNG').write_bytes(MASK)
    assert read_busi(tmp_path).image.tolist() == ['benign/UPPER.PNG', 'normal/good.png'] and len(find_problems(tmp_path)) == 0

@settings(max_examples=40)
@given(st.lists(st.text(st.characters(blacklist_categories=['Cs', 'Cc'], blacklist_characters='/²³¹'), min_size=1, max_size=12), max_size=5))
def test_no_file_name_crashes_the_reader(stems):
    with tempfile.TemporaryDirectory() as tmp:
        root = dataset(Path(tmp)/'d')
        for s in stems: (root/'benign'/f'{s}.png').write_bytes(GOOD)
        visible = [p.name for p in (root/'benign').iterdir() if not p.name.startswith('.')]
        assert set(find_problems(root).file) == {f'benign/{n}' for n in visible}  # each lacks its mask or its image
        if not visible: assert len(read_busi(root)) == 1

def test_superscripts_in_names(tmp_path):
    root = dataset(tmp_path)
    for name in ('1²3.png', '1²3_mask.png'): (root/'benign'/name).write_bytes(MASK)
    assert len(read_busi(root)) == 2

def test_summary_of_a_dataset_without_any_good_image(tmp_path):
    root = dataset(tmp_path)
    (root/'normal/good_mask.png').unlink()
    s = summarize(root)
    assert s['counts']['all']['images'] == 0 and [p['problem'] for p in s['problems']] == ['image without mask']

def test_tumors_are_measured_on_merged_masks(tmp_path):
    root, a, b = dataset(tmp_path), np.zeros((20, 24), np.uint8), np.zeros((20, 24), np.uint8)
    a[2:6, 4:8], b[4:8, 4:8] = 255, 255
    for name, m in (('', None), ('_mask', a), ('_mask_1', b)): (root/f'benign/two{name}.png').write_bytes(GOOD if m is None else png(m))
    t = measure_tumors(read_busi(root)).set_index('image').loc['benign/two.png']
    assert t.tumor == 24/480 and (t.x, t.y) == (6/24, 5/20) and t.masks == 2

def test_real_busi_counts(busi_root):
    df = read_busi(busi_root)
    assert df.label.value_counts().to_dict() == dict(normal=133, benign=437, malignant=210)
    assert df.mask_paths.map(len).groupby(df.label).sum().to_dict() == dict(normal=133, benign=454, malignant=211)
