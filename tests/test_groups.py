"Groups: images are recognized by their pixels wherever they lie, ties hold through one another, and what is not known is said to be not known."
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from busi_unetpp import groups as module
from busi_unetpp.dataset import BusiError, read_busi
from busi_unetpp.duplicates import busi_groups
from busi_unetpp.groups import image_groups, known_groups, pixel_digest, pixel_digests, published_groups
from busi_unetpp.manifest import load_manifest, pixels_sha256

RECORDS = Path(__file__).parents[1]/'nbs'/'records'
LESION = busi_groups().set_index('image').group.astype(str)


@pytest.fixture
def df(small_phantom): return read_busi(small_phantom)

def read_busbra(path):
    "The real BUS-BRA as a table, by a reader of this test's own."
    root = next(Path(path).rglob('bus_data.csv')).parent
    t = pd.read_csv(root/'bus_data.csv')
    return pd.DataFrame(dict(image=t.ID + '.png', image_path=[root/'Images'/f'{i}.png' for i in t.ID], label=t.Pathology, patient=t.Case.astype(str),
        mask_paths=[(root/'Masks'/f"{i.replace('bus', 'mask')}.png",) for i in t.ID], width=t.Width, height=t.Height))


# digests

@pytest.mark.parametrize('name, mode', [('x.png', 'L'), ('x.png', 'RGB'), ('x.png', 'RGBA'), ('x.png', 'P'), ('x.bmp', 'L'), ('x.bmp', 'RGB'), ('x.tif', 'L'), ('x.tiff', 'RGB'), ('x.gif', 'L'), ('x.webp', 'RGB')])
def test_lossless_copies_have_the_digest_of_the_manifest(tmp_path, df, name, mode):
    Image.open(df.image_path[0]).convert('L').convert(mode).save(tmp_path/name, **(dict(lossless=True) if name == 'x.webp' else {}))
    assert pixel_digest(tmp_path/name) == pixels_sha256(df.image_path[0])

def test_other_pixels_have_another_digest(tmp_path, df):
    a = np.asarray(Image.open(df.image_path[0]).convert('L')).copy()
    a[3, 5] ^= 1
    for name in ('x.png', 'x.bmp', 'x.tif'):
        Image.fromarray(a).save(tmp_path/name)
        assert pixel_digest(tmp_path/name) == pixel_digest(tmp_path/'x.png') != pixel_digest(df.image_path[0])

def test_what_cannot_be_decoded_counts_by_its_bytes(tmp_path):
    rng = np.random.default_rng(0)
    for name in ('a.dcm', 'b.dcm'): (tmp_path/name).write_bytes(b'DICM' + rng.bytes(900))
    shutil.copy(tmp_path/'a.dcm', tmp_path/'c.png')
    Image.fromarray(rng.random((9, 9), dtype=np.float32)).save(tmp_path/'f.tif')
    d = {n: pixel_digest(tmp_path/n) for n in ('a.dcm', 'b.dcm', 'c.png', 'f.tif')}
    assert d['a.dcm'] == d['c.png'] != d['b.dcm'] and len(set(d.values())) == 3
    with pytest.raises(BusiError, match='none.png: no such file'): pixel_digest(tmp_path/'none.png')
    with pytest.raises(BusiError, match='none.png: no such file'): pixel_digests(pd.DataFrame(dict(image_path=[tmp_path/'none.png'])))

def test_digests_are_decoded_once(tmp_path, df, monkeypatch):
    monkeypatch.setenv('BUSI_CACHE', str(tmp_path/'cache'))
    asked, real = [], module.pixel_digest
    monkeypatch.setattr(module, 'pixel_digest', lambda p: asked.append(p) or real(p))
    first = pixel_digests(df)
    assert pixel_digests(df).equals(first) and len(asked) == len(df) and list(first.index) == list(df.index)
    shutil.copy(df.image_path[0], tmp_path/'own.png')
    own = df[:1].assign(image_path=[tmp_path/'own.png'])
    pixel_digests(own)
    Image.new('L', (30, 20), 3).save(tmp_path/'own.png')
    assert pixel_digests(own)[0] == real(tmp_path/'own.png') != first[0] and len(asked) == len(df) + 2
    for junk in ('', '[1, 2]', '{"cut', '\x00'):
        (tmp_path/'cache'/'digests.json').write_text(junk)
        assert pixel_digests(df).equals(first)
    monkeypatch.setattr(module, 'KEPT', 5)
    pixel_digests(own.assign(image_path=[shutil.copy(df.image_path[2], tmp_path/'more.png')]))
    assert len(json.loads((tmp_path/'cache'/'digests.json').read_text())) == 5

def test_a_cache_that_cannot_be_written_is_a_warning(tmp_path, df, monkeypatch):
    (tmp_path/'file').touch()
    monkeypatch.setenv('BUSI_CACHE', str(tmp_path/'file'/'cache'))
    with pytest.warns(UserWarning, match='digests of the images are not kept'): found = pixel_digests(df)
    assert found.tolist() == [pixels_sha256(p) for p in df.image_path]


# published groups

def test_every_published_image_has_its_group():
    p = published_groups()
    m = load_manifest().set_index('file').pixels_sha256
    assert p[m[LESION.index]].tolist() == LESION.tolist()          # identical pictures of BUSI never lie in two groups
    assert not m[m.index.str.contains('_mask')].isin(p.index).any()
    bra = load_manifest('busbra').dropna(subset='patient')
    assert p[bra.pixels_sha256].tolist() == ('busbra-' + bra.patient).tolist() and len(p) == 779 + 1875


# ties

def as_published(df, ids):
    "A list that takes the images of a table for published ones with these groups."
    return pd.Series({pixels_sha256(p): g for p, g in zip(df.image_path, ids) if g})

def test_nothing_known(df):
    found = known_groups(df)
    assert set(found.known) == {'not known'} and found.group.tolist() == df.image.tolist() and found.index.equals(df.index)
    assert image_groups(df).equals(found.group) and not len(known_groups(df[:0]))

def test_an_image_is_recognized_under_any_name_and_in_any_company(df, tmp_path):
    published = as_published(df[:6], ['0', '0', '1', '2', '2', '3'])
    for part in (df, df[:2], df[4:6], df[::-1], df.set_index(df.index*7 + 5)):
        found = known_groups(part, published).set_index(part.image)
        for image, g in zip(df.image[:6], ['0', '0', '1', '2', '2', '3']):
            if image in found.index: assert tuple(found.loc[image]) == (g, 'pixels')
        assert (found.known[~found.index.isin(df.image[:6])] == 'not known').all()
    renamed = df[:6].assign(image=[f'malignant/{i}.bmp' for i in range(6)], image_path=[tmp_path/f'{i}.bmp' for i in range(6)])
    for a, b in zip(df.image_path, renamed.image_path): Image.open(a).save(b)
    found = known_groups(pd.concat([df[3:], renamed], ignore_index=True), published)
    assert found.group[-6:].tolist() == ['0', '0', '1', '2', '2', '3'] and found.group[:3].tolist() == ['2', '2', '3'] and found.known.eq('pixels').sum() == 9

def test_identical_pixels_are_one_group_whatever_else_is_stated(df, tmp_path):
    copy = pd.DataFrame([dict(image='x.png', image_path=Path(shutil.copy(df.image_path[0], tmp_path/'x.png')), label='malignant')])
    both = pd.concat([df, copy], ignore_index=True)
    n = len(df)
    found = known_groups(both)
    assert found.group[n] == found.group[0] == df.image[0] and found.known[n] == 'not known' and found.group.nunique() == n
    for column in ('group', 'patient'):
        ids = [f'g{i}' for i in range(n)]
        found = known_groups(both.assign(**{column: [*ids, None]}))
        assert found.group[n] == found.group[0] and found.known[n] == 'pixels'                      # known through its twin
        assert (g := known_groups(both.assign(**{column: [*ids, 'g1']})).group)[n] == g[0] == g[1]    # and ties what it is stated to belong to

def test_ids_of_sources_do_not_collide(df):
    two = df[:4].assign(source=['BUSI', 'UCLM', 'UCLM', 'X'], patient=[None, 1, 1., '1'], group=[7, None, '', float('nan')])
    published = as_published(df[:1], ['7'])
    found = known_groups(two.drop(columns='group'), published)
    assert found.group.tolist() == ['7', 'patient UCLM: 1', 'patient UCLM: 1', 'patient X: 1'] and found.known.tolist() == ['pixels', 'patient', 'patient', 'patient']
    assert known_groups(two, published).group.tolist() == ['BUSI: 7', 'patient UCLM: 1', 'patient UCLM: 1', 'patient X: 1']
    clash = known_groups(df[:3].assign(group=['7', df.image[2], None]), as_published(df[1:2], [None])).group
    assert clash.nunique() == 3
    clash = known_groups(df[:2].assign(group=['7', None]), as_published(df[1:2], ['7']))
    assert clash.group.tolist() == ['stated 7', '7'] and clash.known.tolist() == ['stated', 'pixels']

@settings(max_examples=40)
@given(st.lists(st.tuples(st.sampled_from(['', 'a', 'b', 'c']), st.sampled_from(['', '1', '2', '3'])), min_size=1, max_size=12))
def test_groups_are_what_hangs_together(rows):
    "Against a search written to be obviously right."
    df = pd.DataFrame(dict(image=[f'{i}.png' for i in range(len(rows))], group=[g or None for g, _ in rows], patient=[p or None for _, p in rows]))
    found = known_groups(df)
    for i in range(len(rows)):
        reached = {i}
        while more := {k for k in range(len(rows)) for j in reached if any(x and x == y for x, y in zip(rows[j], rows[k]))} - reached: reached |= more
        assert set(found.index[found.group == found.group[i]]) == reached
        assert found.known[i] == ('stated' if rows[i][0] else 'patient' if rows[i][1] else 'not known')

def test_tables_without_files_are_known_by_names_and_sizes():
    busi = pd.read_csv(RECORDS/'busi_images.csv')
    for part in (busi, busi[200:300], busi[::-7]):
        found = known_groups(part)
        assert found.group.tolist() == LESION[part.image].tolist() and set(found.known) == {'names'}
    assert set(known_groups(busi.assign(width=busi.width + 1)).known) == {'not known'}


# the real images

def test_busi_keeps_its_groups(busi_root, df, tmp_path):
    busi = read_busi(busi_root)
    assert image_groups(busi).tolist() == LESION[busi.image].tolist()
    lesions = busi[busi.label != 'normal'].sample(40, random_state=1)
    assert image_groups(lesions).tolist() == LESION[lesions.image].tolist()
    elsewhere = lesions.assign(image_path=[tmp_path/f'{i}.png' for i in range(40)], image=[f'normal/{i}.png' for i in range(40)])
    for a, b in zip(lesions.image_path, elsewhere.image_path):
        with Image.open(a) as im: im.convert('RGBA').save(b)
    more = pd.concat([df, elsewhere, busi], ignore_index=True)
    found = known_groups(more)
    assert found.group[len(df):].tolist() == [*LESION[lesions.image], *LESION[busi.image]] and (found.known == 'pixels').sum() == 820

@pytest.mark.skipif('BUSBRA_PATH' not in os.environ, reason='BUS-BRA IS NOT HERE: set BUSBRA_PATH to test on the real dataset')
def test_busbra_is_known_by_its_patients_whatever_the_names(busi_root):
    bra = read_busbra(os.environ['BUSBRA_PATH'])[:60]
    anonymous = bra[['image_path']].assign(image=[f'{i}.png' for i in range(60)])
    assert image_groups(anonymous).tolist() == ('busbra-' + bra.patient).tolist()
    both = pd.concat([read_busi(busi_root)[:50].assign(source='BUSI'), bra.assign(source='BUS-BRA')], ignore_index=True)
    assert image_groups(both).tolist() == [*LESION[both.image[:50]], *('busbra-' + bra.patient)]
