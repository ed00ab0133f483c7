"""The manifest: what a pixel hash must not see and must see, each status of `verify`, and BUSI itself where it is on the disk."""
import hashlib
import os
import shutil
import struct
import zlib
from importlib.resources import files
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from busi_unetpp.dataset import LABELS, BusiError, find_root
from busi_unetpp.manifest import (decode_png, find_published, is_whole, list_files, load_manifest, make_busbra_manifest, make_manifest, pixels_sha256, read_sums,
                                  reduce_pixels, verify, verify_report)

BUSI = os.environ.get('BUSI_PATH')
needs_busi = pytest.mark.skipif(not BUSI, reason='BUSI IS NOT HERE: set BUSI_PATH to check the manifest against the real dataset')
COLOR_TYPE = {1: 0, 2: 4, 3: 2, 4: 6}


def chunk(kind, data): return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

def png(a, level=6, idat=8192, sub=False, strategy=zlib.Z_DEFAULT_STRATEGY, before=b'', after=b''):
    "A PNG written by hand from `(H, W, C)` uint8 or uint16; `sub` filters each row as differences to the left neighbor."
    h, w, c = a.shape
    rows = np.frombuffer(a.astype(a.dtype.newbyteorder('>')).tobytes(), np.uint8).reshape(h, -1)
    n = c*a.dtype.itemsize
    if sub: rows = np.concatenate([rows[:, :n], rows[:, n:] - rows[:, :-n]], 1)
    z = zlib.compressobj(level, zlib.DEFLATED, 15, 8, strategy)
    data = z.compress(np.concatenate([np.full((h, 1), int(sub), np.uint8), rows], 1).tobytes()) + z.flush()
    head = chunk(b'IHDR', struct.pack('>IIBBBBB', w, h, 8*a.dtype.itemsize, COLOR_TYPE[c], 0, 0, 0))
    return b'\x89PNG\r\n\x1a\n' + head + before + b''.join(chunk(b'IDAT', data[i:i + idat]) for i in range(0, len(data), idat)) + after + chunk(b'IEND', b'')

def reference(a):
    "The published definition, sample by sample, for a gray `(H, W)` or color `(H, W, 3)` uint8 array that is not gray."
    h, w = a.shape[:2]
    out = f'{h} {w} {1 if a.ndim == 2 else 3} 8\n'.encode()
    for y in range(h):
        for x in range(w): out += bytes([int(a[y, x])]) if a.ndim == 2 else bytes(int(v) for v in a[y, x])
    return hashlib.sha256(out).hexdigest()

def sha(tmp_path, data):
    path = tmp_path/'x.png'
    path.write_bytes(data)
    return pixels_sha256(path)

def saved(im, **options):
    out = BytesIO()
    im.save(out, 'PNG', **options)
    return out.getvalue()

def gray_encodings(a):
    "Every way we know to write a gray uint8 picture without loss."
    im, wide = Image.fromarray(a), a.astype(np.uint16)[..., None]*257
    yield from (saved(im.convert(m)) for m in ('L', 'LA', 'RGB', 'RGBA', 'P'))
    yield from (saved(im, compress_level=9), saved(im, optimize=True), saved(im, dpi=(72, 72)))
    yield saved(im, transparency=next(iter(set(range(256)) - set(a.flat)), None)) if len(set(a.flat)) < 256 else saved(im)  # tRNS for a level that is not there
    yield from (png(a[..., None], sub=sub, idat=k, after=chunk(b'tEXt', b'Comment\0hello')) for sub in (False, True) for k in (7, 8192))
    yield png(a[..., None], before=chunk(b'gAMA', struct.pack('>I', 45455)))
    yield png(np.repeat(a[..., None], 3, 2), sub=True, strategy=zlib.Z_RLE)
    yield png(wide)
    if set(a.flat) <= {0, 255}: yield saved(im.convert('1'))
    if len(set(a.flat)) <= 16:
        levels = sorted(set(a.flat))
        p = Image.fromarray(np.searchsorted(levels, a).astype(np.uint8)).convert('P')
        p.putpalette([v for level in levels for v in [int(level)]*3])
        yield saved(p, bits=4)


small_gray = arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)))
two_levels = arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.sampled_from([0, 255]))

@settings(max_examples=60, deadline=None)
@given(a=st.one_of(small_gray, two_levels), data=st.data())
def test_any_lossless_encoding_keeps_the_hash_and_any_change_alters_it(tmp_path_factory, a, data):
    tmp = tmp_path_factory.mktemp('h')
    want = reference(a)
    for i, encoded in enumerate(gray_encodings(a)): assert sha(tmp, encoded) == want, i
    y, x = data.draw(st.integers(0, a.shape[0] - 1)), data.draw(st.integers(0, a.shape[1] - 1))
    b = a.copy()
    b[y, x] ^= data.draw(st.integers(1, 255))
    for i, encoded in enumerate(gray_encodings(b)): assert sha(tmp, encoded) != want, i
    shutil.rmtree(tmp)

@settings(max_examples=40, deadline=None)
@given(a=arrays(np.uint8, st.tuples(st.integers(1, 6), st.integers(1, 6), st.just(3))), change=st.integers(1, 255), data=st.data())
def test_color_keeps_its_channels(tmp_path_factory, a, change, data):
    tmp = tmp_path_factory.mktemp('c')
    a[0, 0] = (0, 1, 2)
    want = reference(a)
    im = Image.fromarray(a)
    for encoded in (saved(im), saved(im.convert('RGBA')), png(a, sub=True, strategy=zlib.Z_RLE), png(a, idat=5)): assert sha(tmp, encoded) == want
    index = tuple(data.draw(st.integers(0, n - 1)) for n in a.shape)
    b = a.copy()
    b[index] ^= change
    assert sha(tmp, saved(Image.fromarray(b))) != want
    shutil.rmtree(tmp)

def test_interlaced_is_the_same_picture(tmp_path):
    a = np.arange(16, dtype=np.uint8).reshape(4, 4)
    passes = [a[0:1, 0:1], a[0:1, 4:], a[4:, 0:1], a[0:1, 2:3], a[2:3, 0::2], a[0::2, 1::2], a[1::2, :]]
    raw = b''.join(b'\0' + row.tobytes() for p in passes if p.size for row in p)
    data = (b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', 4, 4, 8, 0, 0, 0, 1)) + chunk(b'IDAT', zlib.compress(raw)) + chunk(b'IEND', b''))
    assert sha(tmp_path, data) == reference(a)

def test_16_bit_gray_counts_in_full(tmp_path):
    a = np.array([[[1], [515]]], dtype=np.uint16)
    assert sha(tmp_path, png(a)) == hashlib.sha256(b'1 2 1 16\n\x00\x01\x02\x03').hexdigest()
    assert sha(tmp_path, png(a + 1)) != sha(tmp_path, png(a))

@pytest.mark.parametrize('channels', [2, 3, 4])
def test_16_bit_color_is_refused_not_rounded(tmp_path, channels):
    with pytest.raises(BusiError, match='16-bit color'): sha(tmp_path, png(np.full((5, 4, channels), 300, dtype=np.uint16)))

def test_transparency_is_part_of_the_picture(tmp_path):
    a = np.full((3, 3), 7, np.uint8)
    a[1, 1] = 9
    plain = sha(tmp_path, saved(Image.fromarray(a)))
    assert sha(tmp_path, saved(Image.fromarray(a), transparency=9)) != plain
    wide = a.astype(np.uint16)[..., None]*257
    key = chunk(b'tRNS', struct.pack('>H', 9*257))
    assert sha(tmp_path, png(wide, before=key)) == sha(tmp_path, saved(Image.fromarray(a), transparency=9))

def test_shape_is_part_of_the_hash(tmp_path):
    a = np.arange(12, dtype=np.uint8)
    assert len({sha(tmp_path, saved(Image.fromarray(a.reshape(s)))) for s in ((2, 6), (3, 4), (4, 3), (6, 2))}) == 4

def test_decode_errors_name_the_file(tmp_path):
    for name, content in dict(empty=b'', text=b'<html>', cut=png(np.zeros((90, 90, 1), np.uint8), level=0)[:3000], cut16=png(np.zeros((90, 90, 1), np.uint16), level=0)[:3000]).items():
        (tmp_path/f'{name}.png').write_bytes(content)
        with pytest.raises(BusiError, match=f'{name}.png'): decode_png(tmp_path/f'{name}.png')
    Image.new('L', (4, 4)).save(tmp_path/'j.png', format='JPEG')
    with pytest.raises(BusiError, match='JPEG data'): pixels_sha256(tmp_path/'j.png')


@pytest.fixture
def small(tmp_path):
    "A dataset of two images a class, as RGB, with 1-bit masks, in a folder inside `tmp_path/parent`."
    root, rng = tmp_path/'parent'/'data', np.random.default_rng(0)
    for label in LABELS:
        (root/label).mkdir(parents=True)
        for i in (1, 2):
            Image.fromarray(rng.integers(0, 256, (20, 30), dtype=np.uint8)).convert('RGB').save(root/label/f'{label} ({i}).png')
            Image.fromarray(rng.integers(0, 2, (20, 30), dtype=np.uint8)*255).convert('1').save(root/label/f'{label} ({i})_mask.png')
    return root

def status(checked): return checked.set_index('file').status.to_dict()

def test_a_whole_copy_is_ok_from_either_folder(small):
    m = make_manifest(small)
    assert len(m) == 12 and list(m.columns) == ['file', 'sha256', 'pixels_sha256', 'width', 'height']
    for path in (small, small.parent, str(small)):
        checked = verify(path, m)
        assert set(checked.status) == {'ok'} and set(checked.detail) == {'same file'} and is_whole(checked)

def test_every_status(small):
    m = make_manifest(small)
    b = small/'benign'
    Image.open(b/'benign (1).png').convert('L').save(b/'benign (1).png')
    Image.open(b/'benign (2).png').resize((15, 10)).save(b/'benign (2).png')
    a = np.array(Image.open(b/'benign (1)_mask.png'))
    a[3, 4] ^= True
    Image.fromarray(a).save(b/'benign (1)_mask.png')
    (b/'benign (2)_mask.png').unlink()
    (small/'malignant'/'malignant (1).png').write_bytes(b'')
    Image.new('L', (30, 20)).save(small/'malignant'/'malignant (2).png', format='JPEG')
    for name in ('more.png', 'normal/notes.txt', 'normal/deep/x.PNG', 'other/y.png'):
        (small/name).parent.mkdir(exist_ok=True)
        (small/name).touch()
    checked = verify(small, m)
    assert {k: v for k, v in status(checked).items() if v != 'ok'} == {
        'benign/benign (2).png': 'resized', 'benign/benign (1)_mask.png': 'altered', 'benign/benign (2)_mask.png': 'missing',
        'malignant/malignant (1).png': 'unreadable', 'malignant/malignant (2).png': 'unreadable',
        'more.png': 'extra', 'normal/notes.txt': 'extra', 'normal/deep/x.PNG': 'extra', 'other/y.png': 'extra'}
    detail = checked.set_index('file').detail
    assert detail['benign/benign (1).png'] == 'same pixels, encoded differently'
    assert detail['benign/benign (2).png'] == '30x20 expected, found 15x10'
    assert detail['malignant/malignant (1).png'].startswith('the file is empty') and 'JPEG' in detail['malignant/malignant (2).png']
    report = verify_report(checked)
    assert not is_whole(checked) and '5 of 12 files do not agree' in report and 'there are 4 files that' in report and 'NOT the published' in report
    for f in checked.file[checked.status != 'ok']: assert f in report

def test_litter_is_ignored(small):
    m = make_manifest(small)
    for name in ('README.md', 'Dataset_BUSI.zip', '.DS_Store', 'benign/.DS_Store', 'benign/Thumbs.db', 'normal/desktop.ini', '.cache/x.png',
                 '__MACOSX/benign/._benign (1).png', 'benign/._benign (1).png'):
        (small/name).parent.mkdir(parents=True, exist_ok=True)
        (small/name).touch()
    assert set(verify(small, m).status) == {'ok'} and len(list_files(small)) == 12

def test_linked_class_folders_are_followed(small, tmp_path):
    m = make_manifest(small)
    linked = tmp_path/'linked'
    linked.mkdir()
    try:
        for label in LABELS: (linked/label).symlink_to(small/label, target_is_directory=True)
    except OSError: pytest.skip('this system makes no links')
    assert set(verify(linked, m).status) == {'ok'} and len(verify(linked, m)) == 12

def test_a_folder_in_place_of_a_file_is_missing(small):
    m = make_manifest(small)
    (small/'normal'/'normal (1).png').unlink()
    (small/'normal'/'normal (1).png').mkdir()
    assert status(verify(small, m))['normal/normal (1).png'] == 'missing'

def test_no_dataset(tmp_path):
    with pytest.raises(BusiError, match='no published list'): verify(tmp_path)
    with pytest.raises(BusiError, match='no such folder'): verify(tmp_path/'x')

def test_sums_are_taken_over(small, tmp_path):
    names = list_files(small)
    (tmp_path/'sums').write_text('\n'.join(f'{i:064x}  {f}' for i, f in enumerate(names)) + '\n')
    assert list(make_manifest(small, tmp_path/'sums').sha256) == [f'{i:064x}' for i in range(12)]
    (tmp_path/'sums').write_text(f'{0:064x}  {names[0]}\n')
    with pytest.raises(BusiError, match='no hash for'): make_manifest(small, tmp_path/'sums')

def test_shipped_manifest():
    m = load_manifest()
    assert len(m) == 1578 and m.file.is_unique and not m.isna().any().any()
    assert m.sha256.str.fullmatch('[0-9a-f]{64}').all() and m.pixels_sha256.str.fullmatch('[0-9a-f]{64}').all() and m.sha256.nunique() > 1400
    masks = m[m.file.str.contains('_mask')]
    images = m[~m.file.str.contains('_mask')]
    assert (len(images), len(masks)) == (780, 798)
    size = images.set_index('file')[['width', 'height']]
    for r in masks.itertuples():
        assert (r.width, r.height) == tuple(size.loc[r.file.split('_mask')[0] + '.png']), r.file


@needs_busi
def test_busi_is_whole():
    checked = verify(BUSI)
    assert len(checked) == 1578 and set(checked.status) == {'ok'}, verify_report(checked)

@needs_busi
def test_pixels_in_the_manifest_are_those_of_the_published_files():
    "The published images, written again from the pixels at hand in their writer's way, have the hashes that the manifest gives for the files."
    root, m = find_root(BUSI), load_manifest()
    images = m[~m.file.str.contains('_mask')]
    for r in images.iloc[::26].itertuples():
        a = np.asarray(Image.open(root/r.file).convert('RGB'))
        assert hashlib.sha256(png(a, level=1, sub=True, strategy=zlib.Z_RLE)).hexdigest() == r.sha256, r.file

@needs_busi
def test_manifest_can_be_made_again():
    sums = find_root(BUSI).parent/'SHA256SUMS'
    if not sums.is_file(): pytest.skip('NO SHA256SUMS BESIDE BUSI: the manifest cannot be made again')
    assert set(read_sums(sums)) == set(load_manifest().file)
    root = find_root(BUSI)
    rows = load_manifest().iloc[::40]
    assert [pixels_sha256(root/f) for f in rows.file] == list(rows.pixels_sha256)
    assert [read_sums(sums)[f] for f in rows.file] == list(rows.sha256)
    assert [reduce_pixels(decode_png(root/f)).shape[:2] for f in rows.file] == list(zip(rows.height, rows.width))


# BUS-BRA

BUSBRA = os.environ.get('BUSBRA_PATH')
needs_busbra = pytest.mark.skipif(not BUSBRA, reason='BUS-BRA IS NOT HERE: set BUSBRA_PATH to check its manifest against the real dataset')

@pytest.fixture
def busbra(tmp_path):
    "Four images of two patients in BUS-BRA's layout."
    root, rng = tmp_path/'above'/'BUSBRA', np.random.default_rng(3)
    for folder in ('Images', 'Masks'): (root/folder).mkdir(parents=True)
    names = ['0007-l', '0007-r', '0009-l', '0009-s']
    for n in names:
        a = rng.integers(0, 256, (21, 33), dtype=np.uint8)
        Image.fromarray(a).save(root/'Images'/f'bus_{n}.png')
        Image.fromarray(a > 99).save(root/'Masks'/f'mask_{n}.png')
    (root/'bus_data.csv').write_text('ID,Case,Pathology\n' + ''.join(f'bus_{n},{int(n[:4])},benign\n' for n in names))
    return root

def test_busbra_is_told_by_its_layout_and_compared_by_pixels(busbra, small):
    m = make_busbra_manifest(busbra)
    assert list(m.columns) == ['file', 'pixels_sha256', 'width', 'height', 'patient'] and m.patient.dropna().tolist() == ['7', '7', '9', '9']
    assert find_published(busbra.parent.parent) == ('busbra', busbra) and find_published(small) == ('busi', small)
    Image.open(busbra/'Images'/'bus_0007-l.png').convert('RGB').save(busbra/'Images'/'bus_0007-l.png', optimize=True)
    for path in (busbra, busbra.parent, str(busbra)): assert is_whole(verify(path, m)) and set(verify(path, m).detail) == {'same pixels'}
    (busbra/'Images'/'bus_0009-s.png').unlink()
    Image.new('1', (33, 21)).save(busbra/'Masks'/'mask_0009-l.png')
    (busbra/'Masks'/'more.txt').touch()
    checked = verify(busbra, m)
    assert {k: v for k, v in status(checked).items() if v != 'ok'} == {'Images/bus_0009-s.png': 'missing', 'Masks/mask_0009-l.png': 'altered', 'Masks/more.txt': 'extra'}
    assert 'NOT the published dataset BUS-BRA, 2 of 8 files' in verify_report(checked) and 'data fetch busbra DEST' in verify_report(checked)

def test_any_other_dataset_has_no_list(tmp_path):
    (tmp_path/'images').mkdir()
    Image.new('L', (9, 9)).save(tmp_path/'images'/'a.png')
    with pytest.raises(BusiError, match=r'no published list to compare these files with.*BUSI.*BUS-BRA'): verify(tmp_path)

def test_shipped_busbra_manifest():
    m = load_manifest('busbra')
    path = files('busi_unetpp').joinpath('busbra_manifest.csv')
    assert len(m) == 3750 and m.file.is_unique and m.pixels_sha256.str.fullmatch('[0-9a-f]{64}').all() and path.stat().st_size < 400_000
    images, masks = (m[m.file.str.startswith(f'{f}/')] for f in ('Images', 'Masks'))
    assert len(images) == len(masks) == 1875 and images.patient.nunique() == 1064 and not images.patient.isna().any() and masks.patient.isna().all()
    assert images.pixels_sha256.is_unique and not images.pixels_sha256.isin(load_manifest().pixels_sha256).any()
    both = images.assign(id=images.file.str[len('Images/bus_'):]).merge(masks.assign(id=masks.file.str[len('Masks/mask_'):]), on='id')
    assert len(both) == 1875 and (both.width_x == both.width_y).all() and (both.height_x == both.height_y).all()

@needs_busbra
def test_busbra_is_whole():
    checked = verify(BUSBRA)
    assert len(checked) == 3750 and set(checked.status) == {'ok'}, verify_report(checked)
