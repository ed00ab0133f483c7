"The groups that come with the package, the search behind them, and its command."
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from busi_unetpp.dataset import BusiError, read_busi, read_gray
from busi_unetpp.duplicates import (ALTERATIONS, busi_groups, find_groups, find_images, find_pairs, group_images, image_features, is_same, judge, make_groups, match_pair, shortlist)
from busi_unetpp.phantom import simulate

RECORDS = Path(__file__).parents[1]/'nbs'/'records'


@pytest.fixture(scope='module')
def picture(): return simulate('malignant', 4, (240, 300))[0]


def test_every_image_has_a_group_and_pictures_lie_within_lesions():
    lesion, picture = busi_groups(), busi_groups(strict=True)
    assert list(lesion.columns) == list(picture.columns) == ['image', 'group']
    assert list(lesion.image) == list(picture.image) == list(pd.read_csv(RECORDS/'busi_images.csv').image)
    both = pd.DataFrame(dict(lesion=lesion.group, picture=picture.group))
    assert (both.groupby('picture').lesion.nunique() == 1).all()
    group = lesion.set_index('image').group
    assert group['benign/benign (433).png'] == group['malignant/malignant (145).png'] != group['benign/benign (1).png']
    assert (group.iloc[0], sorted(set(group))) == (0, list(range(group.nunique())))


def test_groups_follow_from_the_records():
    pairs, eye = pd.read_csv(RECORDS/'duplicates_pairs.csv'), pd.read_csv(RECORDS/'duplicates_by_eye.csv')
    made = make_groups(busi_groups().image, pairs, eye)
    assert made.group.tolist() == busi_groups().group.tolist() and made.picture.tolist() == busi_groups(strict=True).group.tolist()
    record = json.loads((RECORDS/'duplicates.json').read_text())
    assert record['same_lesion'] == is_same(pairs).sum() and record['images'] == 780
    assert not any(s in (RECORDS/'duplicates.json').read_text() for s in ('/root', '/work', '/tmp'))


def test_plain_copies_are_in_one_picture_group():
    near = pd.read_csv(RECORDS/'near_copies.csv')
    near = near[near.correlation > .995]
    group = busi_groups().set_index('image').group
    assert len(near) > 100 and (group[near.image].to_numpy() == group[near.nearest].to_numpy()).mean() > .98


@pytest.mark.parametrize('name', ['crop to 40%', 'half the pixels a side', 'stretched by 15%', 'crop, gamma, text'])
def test_an_altered_copy_is_the_same_picture(picture, name):
    m = match_pair(image_features(picture), image_features(ALTERATIONS[name](picture)))
    assert m.inliers > 30 and m.ncc > .9


def test_text_in_common_is_not_a_match(picture):
    other = simulate('benign', 9, (240, 300))[0]
    a, b = (image_features(ALTERATIONS['text and calipers'](im)) for im in (picture, other))
    m = match_pair(a, b)
    assert m.inliers < 6 or abs(m.ncc) < .25


def test_transform_is_in_pixels_of_the_files(picture):
    crop = picture[30:230, 40:290]
    m = match_pair(image_features(picture), image_features(crop))
    np.testing.assert_allclose(m.transform([[40, 30], [289, 229]]), [[0, 0], [249, 199]], atol=1)


def test_flat_and_wrong_images():
    flat = image_features(np.full((80, 90), 7, np.uint8))
    assert match_pair(flat, flat).inliers == 0 and np.isnan(match_pair(flat, flat).ncc)
    for bad in (np.zeros((80, 90)), np.zeros((8, 90), np.uint8), np.zeros((80, 90, 3), np.uint8)):
        with pytest.raises(BusiError, match='expected gray levels'): image_features(bad)


def test_a_reader_overrules_the_search():
    found = pd.DataFrame(dict(a=['p', 'q'], b=['q', 's']))
    eye = pd.DataFrame([('s', 'q', 'different'), ('r', 's', 'same lesion'), ('p', 's', 'unsure')], columns=['a', 'b', 'verdict'])
    assert group_images('pqrs', judge(found, eye)).tolist() == [0, 0, 1, 1]


def test_the_command_says_what_is_wrong(tmp_path):
    done = subprocess.run([sys.executable, '-m', 'busi_unetpp.duplicates', str(tmp_path/'none')], capture_output=True, text=True)
    assert done.returncode == 1 and 'no such folder' in done.stderr and 'Traceback' not in done.stderr
    (tmp_path/'eye.csv').write_text('a,b\nx,y\n')
    from busi_unetpp.phantom import make_phantom
    folder = make_phantom(tmp_path/'phantom', n=8, size=(64, 80))
    with pytest.raises(BusiError, match="no column 'verdict'"): find_groups(folder, tmp_path/'g.csv', by_eye=tmp_path/'eye.csv')


@pytest.mark.skipif('BUSI_PATH' not in os.environ, reason='BUSI_PATH is not set, so the pairs are NOT tested on the real dataset')
def test_recorded_pairs_are_found_again():
    path = read_busi().set_index('image').image_path
    pairs = pd.read_csv(RECORDS/'duplicates_pairs.csv')
    for r in pairs[pairs.inliers >= 6].sample(4, random_state=0).itertuples():
        m = match_pair(*(image_features(read_gray(path[n])) for n in (r.a, r.b)))
        assert abs(m.inliers - r.inliers) <= 3 and abs(m.ncc - r.ncc) < .02


# any folder

def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)

@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('n', [1, 2, 5, 8])
def test_small_and_larger_sets_of_any_format(picture, tmp_path, n, workers):
    "Below seven images there is no shortlist: all pairs are compared."
    others = [simulate('benign', s, (120, 150))[0] for s in range(30, 30 + n)]
    for i, (a, kind) in enumerate(zip(others, ['png', 'jpg', 'bmp', 'tif']*2)): save(tmp_path/'set'/f'{i}.{kind}', a)
    assert find_groups(tmp_path/'set', tmp_path/'g.csv', workers=workers).group.tolist() == list(range(n))
    save(tmp_path/'set'/'deep'/'copy.png', ALTERATIONS['crop to 70%'](others[-1]))
    found = find_groups(tmp_path/'set', tmp_path/'g.csv', workers=workers).set_index('image')
    assert found.group['deep/copy.png'] == found.group[f'{n - 1}.{["png", "jpg", "bmp", "tif"][(n - 1) % 4]}'] and found.group.nunique() == n
    pairs = pd.read_csv(tmp_path/'g_pairs.csv')
    assert len(pairs) == 1 and 'deep/copy.png' in {pairs.a[0], pairs.b[0]} and pairs.verdict[0] == 'same picture' and pairs.inliers[0] > 30
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path/'g.csv'), found.reset_index())

def test_what_cannot_be_read_is_named_and_left_out(picture, tmp_path, capsys):
    for name in ('a.png', 'b.png'): save(tmp_path/'set'/name, picture)
    save(tmp_path/'set'/'tiny.png', picture[:9, :9])
    (tmp_path/'set'/'page.jpg').write_text('<html>')
    (tmp_path/'set'/'cut.png').write_bytes((tmp_path/'set'/'a.png').read_bytes()[:900])
    made = find_groups(tmp_path/'set', tmp_path/'g.csv', progress=True)
    out = capsys.readouterr().out
    assert made.image.tolist() == ['a.png', 'b.png'] and made.group.tolist() == [0, 0] and set(made.attrs['unreadable']) == {'tiny.png', 'page.jpg', 'cut.png'}
    assert all(f'Left out: {n}: ' in out for n in ('tiny.png', 'page.jpg', 'cut.png')) and '5 images; this takes about' in out and 'comparing pairs: 1 of 1' in out
    for n in ('a.png', 'b.png'): (tmp_path/'set'/n).unlink()
    with pytest.raises(BusiError, match='none of the 3 images can be read'): find_groups(tmp_path/'set', tmp_path/'g.csv')

def test_masks_are_no_images(tmp_path, picture, small_phantom):
    for n in ('x.jpg', 'x_mask.png', 'x_Mask_1.png', 'case001.png', 'case001_tumor.png', 'case001_tumor2.png', 'case001_other1.png', 'lone_mask.png', 'Masks/x.png', '.h/y.png', '__MACOSX/z.png'):
        save(tmp_path/'set'/n, picture)
    assert find_images(tmp_path/'set').image.tolist() == ['case001.png', 'lone_mask.png', 'x.jpg']
    assert find_images(small_phantom).image.tolist() == find_images(small_phantom.parent).image.tolist() == read_busi(small_phantom).image.tolist()

def test_a_dataset_with_faults_keeps_its_keys(tmp_path):
    from busi_unetpp.phantom import make_phantom
    root = make_phantom(tmp_path/'above'/'phantom', n=9, size=(64, 80))
    keys = read_busi(root).image.tolist()
    next((root/'benign').glob('*_mask.png')).unlink()
    assert find_images(root).image.tolist() == find_images(root.parent).image.tolist() == keys

def test_flat_images_are_grouped_by_their_pixels_alone(tmp_path):
    for n, level in (('a.png', 7), ('b.bmp', 7), ('c.png', 8), ('d.tif', 7)): save(tmp_path/'set'/n, np.full((50, 60), level, np.uint8))
    assert find_groups(tmp_path/'set', tmp_path/'g.csv').group.tolist() == [0, 0, 1, 0]
    assert pd.read_csv(tmp_path/'g_pairs.csv')[['a', 'b']].to_numpy().tolist() == [['a.png', 'b.bmp'], ['a.png', 'd.tif'], ['b.bmp', 'd.tif']]

def test_votes_do_not_depend_on_the_blocks(monkeypatch):
    from busi_unetpp import duplicates as module
    feats = [image_features(simulate('benign', s, (90, 120))[0]) for s in range(8)]
    index = module.make_index(feats)
    blocks = [index.table[s:e] for s, e in zip(index.starts, [*index.starts[1:], len(index.table)])]
    f = module._unit(index.pca, module._some(feats[3].descriptors, 200))
    likeness = np.column_stack([(f @ b.T).max(axis=1) for b in blocks])
    top = np.argsort(-likeness, axis=1)[:, :7]
    best = np.take_along_axis(likeness, top, 1)
    votes = np.zeros(8)
    np.add.at(votes, top[:, :6].ravel(), (best[:, :6] - best[:, 6:]).ravel())
    np.testing.assert_allclose(module.count_votes(feats[3], index), votes/len(f), atol=1e-6)
    a, b = shortlist(feats), shortlist(feats, workers=2)
    assert (a == b).all() and (find_pairs({str(i): f for i, f in enumerate(feats)}, a[:6], workers=2).matches == find_pairs({str(i): f for i, f in enumerate(feats)}, a[:6]).matches).all()
