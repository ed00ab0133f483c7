"""The split: stratified for any seed, disjoint, complete, and the same when it is read again."""
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from busi_unetpp.dataset import LABELS, BusiError
from busi_unetpp.files import write_csv
from busi_unetpp.split import PARTS, check_leaks, find_leaks, image_groups, make_split, read_split

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
        with pytest.raises(BusiError, match='Cannot split'): make_split(df, test_size=share, seed=seed)
        return
    split = make_split(df, test_size=share, seed=seed)
    assert split.image.tolist() == df.image.tolist() and split.label.tolist() == df.label.tolist() and list(split) == ['image', 'label', 'part', 'group', 'known']
    assert set(split.part) == {'train', 'test'} and (split.part == 'test').sum() == n_test
    in_test = (split.part == 'test').groupby(split.label).sum().reindex(LABELS)
    assert ((in_test - n_test/len(df)*np.array(counts)).abs() < 1).all()
    assert make_split(df, test_size=share, seed=seed).equals(split)

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
    split, order = make_split(df, test_size=.3, seed=seed), list(range(12))
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
    split = make_split(df, test_size=.3)
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
    with pytest.raises(BusiError, match=why): make_split(table(counts), test_size=share, seed=seed)

def test_a_folder_is_no_split(tmp_path):
    with pytest.raises(BusiError, match='Expected train.txt and test.txt'): read_split(tmp_path, table((2, 2, 2)))

def test_real_busi_is_split_as_in_the_paper(busi_root):
    from busi_unetpp.dataset import read_busi
    assert make_split(read_busi(busi_root), seed=7).part.value_counts().to_dict() == dict(train=663, test=117)


# groups

def grouped(sizes, labels):
    "A table whose groups have these sizes and classes."
    rows = [(f'{l}/{g}-{i}.png', l, str(g)) for g, (n, l) in enumerate(zip(sizes, labels)) for i in range(n)]
    return pd.DataFrame(rows, columns=['image', 'label', 'group'])

some_groups = st.lists(st.tuples(st.integers(1, 6), st.sampled_from(LABELS)), min_size=60, max_size=120)

@settings(max_examples=25, deadline=None)
@given(some_groups, st.sampled_from(['grouped', 'kfold']), st.integers(0, 4), seeds)
def test_no_group_is_ever_in_two_parts(groups, kind, fold, seed):
    df = grouped(*zip(*groups))
    if df.label.value_counts().min() < 40 or df.label.nunique() < 3: return
    split = make_split(df, kind, fold=fold, seed=seed)
    assert not len(find_leaks(split)) and set(split.part) == set(PARTS) and split.image.tolist() == df.image.tolist()
    check_leaks(split)

def test_each_image_is_tested_once_over_the_folds():
    df = grouped([1, 2, 3]*40, [l for l in LABELS for _ in range(40)])
    tested = pd.concat([(s := make_split(df, 'kfold', fold=k))[s.part == 'test'].image for k in range(5)])
    assert sorted(tested) == sorted(df.image)

def test_a_planted_leak_is_refused_by_name():
    df = grouped([2]*60, [l for l in LABELS for _ in range(20)])
    split = make_split(df, 'grouped')
    for image in (split.image[0], split.image[77]):
        bad = split.copy()
        part = bad.part[bad.image == image].iloc[0]
        bad.loc[bad.image == image, 'part'] = 'test' if part == 'train' else 'train'
        with pytest.raises(BusiError, match='more than one part') as e: check_leaks(bad, 'mine.csv')
        assert image in str(e.value) and 'mine.csv' in str(e.value)

def test_groups_are_those_of_busi_only_if_the_images_are():
    df = table((3, 3, 3)).assign(height=5)
    assert image_groups(df).tolist() == df.image.tolist()                       # another dataset: each image by itself
    busi = pd.read_csv(Path(__file__).parent.parent/'nbs'/'records'/'busi_images.csv')
    known = image_groups(busi)
    assert 400 < known.nunique() < 700 and known[busi.image == 'benign/benign (433).png'].iloc[0] == known[busi.image == 'malignant/malignant (145).png'].iloc[0]
    busi.loc[3, 'width'] += 1                                                   # one image of another size: not BUSI
    assert image_groups(busi).nunique() == 780

@pytest.mark.parametrize('form', [lambda k: k, lambda k: k[:-4], lambda k: k.split('/')[1], lambda k: k.split('/')[1][:-4], lambda k: k.replace('/', '\\'), lambda k: f'  {k}  '])
def test_published_lists_are_read_in_any_form(form, tmp_path):
    df = table((4, 4, 4))
    (tmp_path/'train.txt').write_text('\n'.join(map(form, df.image[:5])) + '\n\n')
    (tmp_path/'test.txt').write_text('\r\n'.join(map(form, df.image[6:9])))
    split = read_split(tmp_path, df)
    assert split.image.tolist() == [*df.image[:5], *df.image[6:9]] and split.part.tolist() == ['train']*5 + ['test']*3

def test_a_name_that_fits_two_images_is_refused(tmp_path):
    df = table((2, 2, 2), ['a.png', 'b.png', 'a.png', 'c.png', 'd.png', 'e.png'])
    (tmp_path/'train.txt').write_text('a\nb\n')
    (tmp_path/'test.txt').write_text('c\n')
    with pytest.raises(BusiError, match="train.txt: 'a' is not in the dataset"): read_split(tmp_path, df)

# what stays as it was, and several sources

RECORDS = Path(__file__).parent.parent/'nbs'/'records'
BUSI = pd.read_csv(RECORDS/'busi_images.csv')

@pytest.mark.parametrize('fold', range(5))
def test_recorded_splits_of_busi_are_made_again(fold):
    recorded = pd.read_csv(RECORDS/f'strong-{fold}-cpu'/'split.csv', dtype=str)
    made = make_split(BUSI, 'kfold', fold=fold)
    assert made[['image', 'label', 'part', 'group']].values.tolist() == recorded[['image', 'label', 'part', 'group']].values.tolist() and made.known.all()
    assert read_split(RECORDS/f'strong-{fold}-cpu'/'split.csv', BUSI).equals(made)               # a split.csv without `known`

def test_real_busi_gives_the_recorded_split(busi_root):
    from busi_unetpp.dataset import read_busi
    recorded = pd.read_csv(RECORDS/'strong-0-cpu'/'split.csv', dtype=str)
    made = make_split(read_busi(busi_root), 'kfold')
    assert made[['image', 'part', 'group']].values.tolist() == recorded[['image', 'part', 'group']].values.tolist() and made.known.all()

def test_known_is_written_and_is_false_where_nobody_knows(tmp_path):
    df = table((20, 20, 20)).assign(height=5, patient=[str(i//2) if i < 30 else None for i in range(60)])
    split = make_split(df, 'grouped')
    assert split.known.tolist() == [True]*30 + [False]*30
    path = write_csv(tmp_path/'s.csv', split)
    assert pd.read_csv(path).known.tolist() == split.known.tolist() and read_split(path, df).equals(split)

def other(n=160):
    rows = np.arange(n)
    return pd.DataFrame(dict(image=[f'BUS-BRA/{i}.png' for i in rows], label=np.where(rows % 3, 'benign', 'malignant'), source='BUS-BRA', patient=[f'{i//6}-{i % 3}' for i in rows],
        width=300, height=300))

def joined(*tables): return pd.concat(tables, ignore_index=True)

NAMED = BUSI.assign(source='BUSI', image='BUSI/' + BUSI.image)

@pytest.mark.parametrize('kind, fold, seed', [('kfold', 0, 42), ('kfold', 3, 42), ('kfold', 1, 7), ('grouped', 0, 42), ('grouped', 0, 3), ('paper', 0, 42)])
@pytest.mark.parametrize('order', ['first', 'last', 'mixed'])
def test_busi_is_split_as_if_it_were_alone(kind, fold, seed, order):
    df = joined(NAMED, other()) if order != 'last' else joined(other(), NAMED)
    if order == 'mixed':
        slots = np.random.default_rng(0).permutation(len(df))      # BUSI keeps its own order and is interleaved with the other source
        df = df.iloc[np.argsort(np.concatenate([np.sort(slots[:780]), np.sort(slots[780:])]))].reset_index(drop=True)
    split, alone = make_split(df, kind, fold=fold, seed=seed), make_split(BUSI, kind, fold=fold, seed=seed)
    mine = (df.source == 'BUSI').to_numpy()
    assert split.image.tolist() == df.image.tolist() and split.part[mine].tolist() == alone.part.tolist() and split.known.all()
    counts = pd.crosstab([df.source, df.label], split.part)
    assert (counts > 0).all(axis=None) and (kind == 'paper' or not len(find_leaks(split)))
    shares = counts.div(counts.sum(axis=1), axis=0).test
    assert (shares - shares.iloc[0]).abs().max() < .1

def test_a_group_over_two_sources_follows_busi():
    twins = joined(NAMED, other()).assign(width=1)                                      # nothing is known by name
    twins['patient'] = [*map(str, range(780)), *other().patient]
    from busi_unetpp import split as module
    real = module.known_groups
    with pytest.MonkeyPatch.context() as m:
        m.setattr(module, 'known_groups', lambda d: real(d).assign(group=lambda g: g.group.where(~d.image.isin(['BUSI/benign/benign (5).png', 'BUS-BRA/7.png', 'BUS-BRA/11.png']), 'both')))
        for fold in range(5):
            split = make_split(twins, 'kfold', fold=fold).set_index('image').part
            assert split['BUS-BRA/7.png'] == split['BUS-BRA/11.png'] == split['BUSI/benign/benign (5).png']

def test_a_source_that_is_too_small_is_named():
    with pytest.raises(BusiError, match='Source BUS-BRA: Cannot split 3 images into 5 parts'): make_split(joined(NAMED, other(3)), 'kfold')

def test_sets_without_normals_or_without_classes_are_split():
    df = other()
    for d in (df, df.assign(label=None), df.assign(label='lesion')):
        split = make_split(d, 'kfold')
        assert set(split.part) == set(PARTS) and not len(find_leaks(split))
        assert make_split(d).part.value_counts()['test'] == 24

@pytest.mark.parametrize('form', [lambda k: k, lambda k: k[:-4], lambda k: f'BUSI/{k}', lambda k: f'BUSI/{k[:-4]}', lambda k: f'BUSI\\{k}', lambda k: k.split('/')[1]])
def test_lists_are_read_with_and_without_the_source(form, tmp_path):
    (tmp_path/'train.txt').write_text('\n'.join(map(form, BUSI.image[:5])))
    (tmp_path/'test.txt').write_text('\n'.join(map(form, BUSI.image[6:9])))
    assert read_split(tmp_path, BUSI).image.tolist() == [*BUSI.image[:5], *BUSI.image[6:9]]
    assert read_split(tmp_path, joined(other(), NAMED)).image.tolist() == [f'BUSI/{k}' for k in [*BUSI.image[:5], *BUSI.image[6:9]]]

def test_a_name_of_two_sources_needs_its_source(tmp_path):
    df = joined(table((2, 2, 2)).assign(source='A'), table((2, 2, 2)).assign(source='B'))
    df['image'] = df.source + '/' + df.image
    (tmp_path/'test.txt').write_text('B/benign/3.png')
    (tmp_path/'train.txt').write_text('A/benign/2.png\nB/benign/2')
    assert read_split(tmp_path, df).image.tolist() == ['A/benign/2.png', 'B/benign/2.png', 'B/benign/3.png']
    (tmp_path/'train.txt').write_text('benign/2.png')
    with pytest.raises(BusiError, match="'benign/2.png' is not in the dataset"): read_split(tmp_path, df)


# lists from elsewhere

@pytest.mark.parametrize('code', ['utf-8', 'utf-8-sig', 'utf-16', 'utf-16-le-bom', 'latin-1'])
def test_lists_and_tables_in_the_encodings_of_windows(code, tmp_path):
    df = table((4, 4, 4), [f'Fall ä{i}.png' for i in range(12)])
    split = make_split(df, test_size=.3)
    encode = lambda s: b'\xff\xfe' + s.encode('utf-16-le') if code == 'utf-16-le-bom' else s.encode(code)
    for part, text in (('train', ''), ('test', '')): (tmp_path/f'{part}.txt').write_bytes(encode('\r\n'.join(split.image[split.part == part]) + '\r\n'))
    assert read_split(tmp_path, df).part.tolist() == split.part.tolist()
    (tmp_path/'split.csv').write_bytes(encode(split[['image', 'part']].to_csv(index=False, sep=';')))
    assert read_split(tmp_path/'split.csv', df).part.tolist() == split.part.tolist()

def test_val_in_a_table_is_the_validation_set(tmp_path):
    df = table((20, 20, 20))
    split = make_split(df, 'grouped')
    for word in ('val', 'validation', ' valid '):
        write_csv(tmp_path/'split.csv', split[['image', 'part']].replace('valid', word))
        assert read_split(tmp_path/'split.csv', df).part.tolist() == split.part.tolist()

def test_names_that_tables_and_terminals_would_obey_come_back(tmp_path):
    df = table((4, 4, 4), ['=cmd()', '+1', '-2', '@x', "'=y", '$x^^y$', '[red]', 'NA', 'null', '007', 'a,b', 'a"b'])
    df['image'] = [k.split('/')[1] for k in df.image]                           # without the class folder, which comes first elsewhere
    split = make_split(df, test_size=.3)
    assert read_split(write_csv(tmp_path/'split.csv', split), df).part.tolist() == split.part.tolist()

def test_the_message_names_an_option_that_exists():
    from busi_unetpp.cli import app
    from typer.testing import CliRunner
    with pytest.raises(BusiError, match=r'fewer folds \(--folds\) or the split `paper` \(--split\)'): make_split(table((2, 2, 2)), 'kfold', folds=6)
    help = CliRunner().invoke(app, ['train', '--help'], env=dict(COLUMNS='200', NO_COLOR='1')).output
    assert '--folds' in help and '--split' in help

@settings(max_examples=150)
@given(st.data())
def test_a_mutated_list_is_read_or_named(data):
    df = table((4, 4, 4))
    text = make_split(df, test_size=.3)[['image', 'part']].to_csv(index=False).encode()
    at, new = data.draw(st.integers(0, len(text) - 1)), data.draw(st.binary(max_size=4))
    text = text[:at] + new + text[at + data.draw(st.integers(0, 9)):]
    with tempfile.TemporaryDirectory() as tmp:
        for path in (Path(tmp)/'split.csv', Path(tmp)/'train.txt'): path.write_bytes(text)
        (Path(tmp)/'test.txt').write_bytes(text[:at])
        for path in (Path(tmp)/'split.csv', Path(tmp)):
            try: read_split(path, df)
            except BusiError as e: assert str(tmp) in str(e)
