"The groups that come with the package, the search behind them, and its command."
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from busi_unetpp.dataset import BusiError, read_busi, read_gray
from busi_unetpp.duplicates import (ALTERATIONS, busi_groups, find_groups, group_images, image_features, is_same, judge, make_groups, match_pair)
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
