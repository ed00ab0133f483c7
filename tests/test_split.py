"""The split: stratified for any seed, disjoint, complete, and the same when it is read again."""
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from busi_unetpp.dataset import LABELS, BusiError
from busi_unetpp.files import write_csv
from busi_unetpp.split import make_split, read_split

def table(counts, names=None):
    "A dataset's table with so many images a class."
    labels = [l for l, n in zip(LABELS, counts) for _ in range(n)]
    names = names or [f'{i}.png' for i in range(len(labels))]
    return pd.DataFrame(dict(image=[f'{l}/{n}' for l, n in zip(labels, names)], label=labels, width=5))

counts = st.tuples(*[st.integers(2, 60)]*3)
seeds = st.integers(0, 2**32 - 1)

@settings(max_examples=60)
@given(counts, seeds, st.floats(.15, .5))
def test_any_split_is_stratified_disjoint_and_complete(counts, seed, share):
    df = table(counts)
    n_test = int(np.ceil(share*len(df)))
    if n_test < 3:
        with pytest.raises(BusiError, match='Cannot split'): make_split(df, share, seed)
        return
    split = make_split(df, share, seed)
    assert split.image.tolist() == df.image.tolist() and split.label.tolist() == df.label.tolist() and list(split) == ['image', 'label', 'part']
    assert set(split.part) == {'train', 'test'} and (split.part == 'test').sum() == n_test
    in_test = (split.part == 'test').groupby(split.label).sum().reindex(LABELS)
    assert ((in_test - n_test/len(df)*np.array(counts)).abs() < 1).all()
    assert make_split(df, share, seed).equals(split)

@settings(max_examples=10)
@given(seeds, seeds)
def test_the_seed_decides(a, b):
    df = table((40, 40, 40))
    assert make_split(df, seed=a).equals(make_split(df, seed=b)) == (a == b)

@settings(max_examples=15)
@given(seeds)
def test_the_index_of_the_table_plays_no_part(seed):
    df = table((8, 9, 10))
    assert make_split(df.set_index(np.arange(27)*3 + 100), seed=seed).equals(make_split(df, seed=seed))

odd_names = st.lists(st.text(st.characters(blacklist_categories=['Cs', 'Cc'], blacklist_characters='/'), min_size=1, max_size=8), min_size=12, max_size=12, unique=True)

@settings(max_examples=40)
@given(odd_names, seeds, st.randoms(use_true_random=False))
def test_read_back_equal_whatever_the_names(names, seed, rnd):
    df = table((4, 4, 4), names)
    split, order = make_split(df, .3, seed), list(range(12))
    rnd.shuffle(order)
    with tempfile.TemporaryDirectory() as tmp:
        path = write_csv(Path(tmp)/'split.csv', split)
        assert read_split(path, df).equals(split)
        write_csv(path, split.iloc[order][['part', 'image']].assign(fold=1))  # rows and columns in any order, and more of them
        assert read_split(path, df).equals(split)

@settings(max_examples=60)
@given(st.one_of(st.binary(max_size=80), st.text(st.sampled_from('image,part\ntrest"benign/0.pg '), max_size=80).map(str.encode)))
def test_any_other_file_is_refused_by_name(data):
    with tempfile.TemporaryDirectory() as tmp:
        path = Path(tmp)/'split.csv'
        path.write_bytes(data)
        with pytest.raises(BusiError, match='split.csv'): read_split(path, table((2, 2, 2)))

@settings(max_examples=40)
@given(st.data())
def test_any_single_fault_is_refused_and_shown(data):
    df = table((4, 4, 4))
    split = make_split(df, .3)
    i, fault = data.draw(st.integers(0, 11)), data.draw(st.sampled_from(['drop', 'twice', 'other name', 'other part', 'no part']))
    name, bad = split.image[i], split.copy()
    if fault == 'drop': bad = bad.drop(index=i)
    if fault == 'twice': bad = pd.concat([bad, bad.iloc[[i]]])
    if fault == 'other name': bad.loc[i, 'image'] = name = 'benign/stranger.png'
    if fault == 'other part': bad.loc[i, 'part'] = 'Train'
    if fault == 'no part': bad.loc[i, 'part'] = None
    with tempfile.TemporaryDirectory() as tmp, pytest.raises(BusiError) as e: read_split(write_csv(Path(tmp)/'split.csv', bad), df)
    assert name in str(e.value) and '(1 such)' in str(e.value)

@pytest.mark.parametrize('counts, share, seed, why', [((1, 5, 5), .3, 0, "'normal' has only 1"), ((2, 2, 2), .15, 0, 'Cannot split 6 images'),
    ((5, 5, 5), 1.5, 0, 'test share of 1.5'), ((5, 5, 5), .3, -1, 'Cannot split'), ((5, 5, 5), .99, 0, 'Cannot split')])
def test_what_cannot_be_split(counts, share, seed, why):
    with pytest.raises(BusiError, match=why): make_split(table(counts), share, seed)

def test_a_folder_is_no_split(tmp_path):
    with pytest.raises(BusiError, match='not a split that can be read'): read_split(tmp_path, table((2, 2, 2)))

def test_real_busi_is_split_as_in_the_paper(busi_root):
    from busi_unetpp.dataset import read_busi
    assert make_split(read_busi(busi_root), seed=7).part.value_counts().to_dict() == dict(train=663, test=117)
