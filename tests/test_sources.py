"Datasets of every known layout as one table, every wrong file named, and the one rule for what is a mask."
import json
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image
from typer.testing import CliRunner

from busi_unetpp.cli import app
from busi_unetpp.dataset import AnyMask, BusiError, count_classes, measure_tumors, read_busi, read_mask, read_masks, summarize
from busi_unetpp.images import find_images
from busi_unetpp.lesions import score_images
from busi_unetpp.preprocess import load_pair
from busi_unetpp.sources import (COLUMNS, LAYOUTS, check_masks, dataset_problems, describe_limits, find_layout, is_mask_file, read_dataset, read_datasets,
    summarize_dataset, tumor_shares)

SIZE, BOX = (40, 30), (5, 10, 20, 20)     # width and height; left, top, right, bottom

def image(path, size=SIZE):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise(size, 50).save(path)

def mask(path, box=BOX, color=255, size=SIZE, **kw):
    path.parent.mkdir(parents=True, exist_ok=True)
    im = Image.new('RGB' if isinstance(color, tuple) else 'L', size)
    if box: im.paste(color, box)
    im.save(path, **kw)


# one small set of every layout

def make_busi(root, n=2):
    for label in ('benign', 'malignant', 'normal'):
        for i in range(1, n + 1):
            image(root/label/f'{label} ({i}).png')
            mask(root/label/f'{label} ({i})_mask.png', () if label == 'normal' else BOX)
    return root

def make_busbra(root, names=('0001-l', '0001-r', '0002-s')):
    for n in names:
        image(root/'Images'/f'bus_{n}.png')
        mask(root/'Masks'/f'mask_{n}.png')
    lines = ['bus_0001-l,1,x,malignant,4,GE', 'bus_0001-r,1,x,malignant,4,GE', 'bus_0002-s,2,x,benign,2,Toshiba']
    (root/'bus_data.csv').write_text('\n'.join(['ID,Case,Histology,Pathology,BIRADS,Device', *lines]))
    return root

def make_breast(root, table='clinical.csv'):
    for n in (1, 2, 3): image(root/f'case00{n}.png')
    for n in ('case001_tumor', 'case002_tumor1', 'case002_tumor2', 'case002_other1'): mask(root/f'{n}.png')
    t = pd.DataFrame(dict(CaseID=[1, 2, 3], Image_filename=[f'case00{n}.png' for n in (1, 2, 3)], Classification=['malignant', 'benign', 'normal'], BIRADS=['4a', '2', '1']))
    if table: t.to_excel(root/table, index=False) if table.endswith('xlsx') else t.to_csv(root/table, index=False)
    return root

def make_uclm(root):
    for n, box, color in (('ANFO_000', BOX, (0, 255, 0)), ('ANFO_001', (), (0, 255, 0)), ('VITR_000', BOX, (255, 0, 0))):
        image(root/'images'/f'{n}.png')
        mask(root/'masks'/f'{n}.png', box, color)
    (root/'INFO.csv').write_text('Image;Resolution;Label;Doppler\nANFO_000.png;x;Benign;No\nANFO_001.png;x;Normal;No\nVITR_000.png;x;Malignant;No\n')
    return root

def make_pairs(root, ending='.png', mask_ending='.png'):
    for n in ('a', 'b'):
        image(root/'images'/f'{n}{ending}')
        mask(root/'masks'/f'{n}{mask_ending}')
    return root

def make_beside(root):
    for n, name in (('a.jpg', 'a_mask.png'), ('b.bmp', 'b_Mask.png')):
        image(root/n)
        mask(root/name)
    return root

def make_csv(root):
    for n in 'abc': image(root/'scans'/f'{n}.png')
    for n in ('a1', 'a2', 'b'): mask(root/'drawn'/f'{n}.png')
    lines = ['scans/a.png,drawn/a1.png,cyst,g1,p1', 'scans/a.png,drawn/a2.png,cyst,g1,p1', 'scans/b.png,drawn/b.png,benign,g2,', 'scans/c.png,,normal,g3,p3']
    (root/'set.csv').write_text('\n'.join(['image,mask,label,group,patient', *lines]))
    return root

MAKERS = {'BUSI': make_busi, 'BUS-BRA': make_busbra, 'BUS-UCLM': make_uclm, 'BrEaST': make_breast, 'CSV': make_csv, 'pairs': make_pairs}

def test_every_layout_has_a_maker(): assert set(MAKERS) == set(LAYOUTS) - {'bundle'}      # a file, see test_bundle.py

@pytest.mark.parametrize('name', MAKERS)
@pytest.mark.parametrize('above', [False, True])
def test_every_layout_is_recognized_in_its_folder_and_from_above(name, above, tmp_path):
    root = MAKERS[name](tmp_path/'data'/'set')
    df = read_dataset(root.parent if above else root)
    assert df.attrs['layout'] == name and tuple(df.columns[:8]) == COLUMNS and df.image.is_unique and len(df) >= 2
    assert all(p.is_file() for p in df.image_path) and all(isinstance(m, tuple) for m in df.mask_paths)
    assert (df.width == SIZE[0]).all() and (df.height == SIZE[1]).all()
    folder = Path(df.attrs['root'])
    folder = folder if folder.is_dir() else folder.parent
    assert [folder/i for i in df.image] == df.image_path.tolist()
    assert len(dataset_problems(root)) == 0 and check_masks(df) == [] and find_layout(root, name)[0] == name

@pytest.mark.parametrize('name', MAKERS)
def test_the_rest_of_the_package_reads_every_layout(name, tmp_path):
    df = read_dataset(MAKERS[name](tmp_path/'set'))
    t, pairs = measure_tumors(df), [load_pair(r.image_path, r.mask_paths, 32) for r in df.itertuples()]
    assert ((t.tumor > 0) == (df.label != 'normal')).all() and t.tumor.max() == 150/1200
    assert all(m.shape == (32, 32) and m.any() == (label != 'normal') for (_, m), label in zip(pairs, df.label))
    truth = [read_masks(r.mask_paths, (r.height, r.width)).astype(float) for r in df.itertuples()]
    assert score_images(df, truth).query('lesions > 0').dice.eq(1).all()

def test_read_busi_is_what_read_dataset_gives_for_busi(tmp_path, small_phantom):
    root = make_busi(tmp_path/'busi', 11)
    df, old = read_dataset(root), read_busi(root)
    pd.testing.assert_frame_equal(df[old.columns], old, check_flags=False)
    assert df.source.eq('BUSI').all() and df.patient.isna().all() and 'birads' not in df
    assert read_dataset(small_phantom).source.eq('phantom').all()      # laid out like BUSI, but nobody's images

def test_busbra(tmp_path):
    df = read_dataset(make_busbra(tmp_path/'x'))
    assert df.source.eq('BUS-BRA').all() and df.patient.tolist() == ['1', '1', '2'] and df.label.tolist() == ['malignant', 'malignant', 'benign']
    assert df.birads.tolist() == ['4', '4', '2'] and df.device.tolist() == ['GE', 'GE', 'Toshiba']
    assert not any(isinstance(p, AnyMask) for ps in df.mask_paths for p in ps)      # its masks are strictly black and white, and must be

def test_a_subset_of_busbra_says_so_and_a_stranger_in_it_is_named(tmp_path):
    df = read_dataset(make_busbra(tmp_path/'x', ('0001-l',)))
    assert len(df) == 1 and df.attrs['notes'] == ['2 of the 3 lines of bus_data.csv have no image here (a subset).']
    image(tmp_path/'x'/'Images'/'bus_0009-l.png')
    mask(tmp_path/'x'/'Masks'/'mask_0009-l.png')
    with pytest.raises(BusiError, match=r'bus_0009-l\.png: not in the table'): read_dataset(tmp_path/'x')
    (tmp_path/'x'/'bus_data.csv').unlink()
    with pytest.raises(BusiError, match=r'bus_data\.csv: no such file'): read_dataset(tmp_path/'x')

@pytest.mark.parametrize('table', ['clinical.csv', 'clinical.xlsx', '../BrEaST-clinical-data.xlsx', None])
def test_breast(table, tmp_path):
    df = read_dataset(make_breast(tmp_path/'x', table))
    assert df.source.eq('BrEaST').all() and df.mask_paths.map(len).tolist() == [1, 2, 0] and df.patient.is_unique
    assert df.label.tolist() == (['malignant', 'benign', 'normal'] if table else ['unlabeled', 'unlabeled', 'normal'])
    assert not any('other' in p.name for ps in df.mask_paths for p in ps)
    if table: assert df.birads.tolist() == ['4a', '2', '1']

def test_a_lost_mask_of_breast_is_no_normal_image(tmp_path):
    root = make_breast(tmp_path/'x')
    (root/'case001_tumor.png').unlink()
    with pytest.raises(BusiError, match=r'case001\.png: image without mask'): read_dataset(root)

def test_uclm(tmp_path):
    df = read_dataset(make_uclm(tmp_path/'x'))
    assert df.source.eq('BUS-UCLM').all() and df.patient.tolist() == ['ANFO', 'ANFO', 'VITR'] and df.label.tolist() == ['benign', 'normal', 'malignant']
    assert tumor_shares(df).tolist() == [150/1200, 0, 150/1200]       # green and red alike
    mask(tmp_path/'x'/'masks'/'VITR_000.png', size=(20, 20))           # as published: another size than the image
    with pytest.warns(UserWarning, match='left out'): assert read_dataset(tmp_path/'x', strict=False).patient.tolist() == ['ANFO', 'ANFO']

@pytest.mark.parametrize('ending', ['.png', '.jpg', '.JPEG', '.tif', '.bmp', '.webp', '.gif'])
@pytest.mark.parametrize('mask_ending', ['.png', '.jpg', '.bmp', '.tiff'])
def test_pairs_in_any_format(ending, mask_ending, tmp_path):
    df = read_dataset(make_pairs(tmp_path/'my set', ending, mask_ending))
    assert df.source.eq('my set').all() and df.label.eq('unlabeled').all() and df.patient.isna().all() and len(df) == 2
    assert np.abs(tumor_shares(df)*1200 - 150).max() <= 20             # JPEG frays the edge by less than a pixel

@pytest.mark.parametrize('images, masks', [('images', 'masks'), ('Images', 'Masks'), ('IMG', 'mask'), ('original', 'GT')])
@pytest.mark.parametrize('name', ['{}', '{}_mask', '{}_Mask', '{}_tumor'])
def test_names_of_pairs(images, masks, name, tmp_path):
    for n in ('a', 'b'):
        image(tmp_path/'s'/images/f'{n}.jpg')
        mask(tmp_path/'s'/masks/f'{name.format(n)}.png')
    assert read_dataset(tmp_path/'s').mask_paths.map(len).tolist() == [1, 1]

def test_masks_beside_their_images(tmp_path):
    df = read_dataset(make_beside(tmp_path/'s'))
    assert df.image.tolist() == ['a.jpg', 'b.bmp'] and [p[0].name for p in df.mask_paths] == ['a_mask.png', 'b_Mask.png']

@pytest.mark.parametrize('tree, labels', [
    (['benign/images', 'cyst/images'], ['benign', 'cyst']), (['images/Benign', 'images/cyst'], ['benign', 'cyst']), (['train/images', 'val/images'], ['unlabeled']*2),
    (['malignant', 'Cyst'], ['Cyst', 'malignant']), (['images/train', 'images/test'], ['unlabeled']*2), (['benign/images'], ['benign'])])
def test_folders_are_classes(tree, labels, tmp_path):
    for f in tree:
        image(tmp_path/'s'/f/'a.jpg')
        mask(tmp_path/'s'/(f.replace('images', 'masks'))/('a.png' if 'images' in f else 'a_mask.png'))
    assert sorted(read_dataset(tmp_path/'s').label) == labels

def test_normal_images_need_no_mask_in_a_set_of_pairs_and_others_do(tmp_path):
    for n in ('benign', 'normal'): image(tmp_path/'s'/n/'a.jpg')
    mask(tmp_path/'s'/'benign'/'a_mask.png')
    image(tmp_path/'s'/'extra'/'z.png')
    df = read_dataset(tmp_path/'s')
    assert df.label.tolist() == ['benign', 'normal'] and df.mask_paths[1] == () and df.attrs['notes'] == ['Images without masks are left out: extra.']
    image(tmp_path/'s'/'benign'/'b.jpg')
    with pytest.raises(BusiError, match=r'benign/b\.jpg: image without mask'): read_dataset(tmp_path/'s')

def test_csv(tmp_path):
    root = make_csv(tmp_path/'mine')
    for path in (root, root/'set.csv', str(root/'set.csv')):
        df = read_dataset(path)
        assert df.image.tolist() == ['scans/a.png', 'scans/b.png', 'scans/c.png'] and df.label.tolist() == ['cyst', 'benign', 'normal']
        assert df.group.tolist() == ['g1', 'g2', 'g3'] and df.patient.isna().tolist() == [False, True, False] and df.mask_paths.map(len).tolist() == [2, 1, 0]
    (root/'set.csv').write_text((root/'set.csv').read_text().replace(',', ';').replace('image;mask', 'Image;MASK'), encoding='utf-8-sig')
    assert len(read_dataset(root)) == 3

@pytest.mark.parametrize('text, why', [
    ('image,label\na.png,benign\n', 'no column mask'), ('', 'not a table'), ('image,mask\n', 'holds no image'),
    ('image,mask\nscans/a.png,drawn/none.png\n', r'drawn/none\.png: missing'), ('image,mask\nnone.png,drawn/b.png\n', r'none\.png: missing'),
    ('image,mask,label\nscans/a.png,,benign\n', 'image without mask'), ('image,mask\nscans/a.png,drawn/b.png\n,drawn/b.png\n', 'line without image'),
    ('image,mask,label\nscans/a.png,drawn/a1.png,benign\nscans/a.png,drawn/a2.png,cyst\n', 'its lines say label benign and cyst')])
def test_bad_csv(text, why, tmp_path):
    path = make_csv(tmp_path/'mine')/'set.csv'
    path.write_text(text)
    with pytest.raises(BusiError, match=why) as e: read_dataset(path)
    assert 'set.csv' in str(e.value) or 'mine' in str(e.value)


# faults

BAD = {'unreadable': b'<html>404</html>', 'empty': b''}

@settings(max_examples=30)
@given(st.lists(st.sampled_from(['fine', 'no mask', 'no image', 'size', 'unreadable', 'empty', 'gray', 'truncated', 'twin']), max_size=6))
def test_any_mixture_of_faults_is_named_file_by_file(tmp_path_factory, faults):
    root = make_pairs(tmp_path_factory.mktemp('s')/'s')
    want = set()
    for i, fault in enumerate(faults):
        a, m = root/'images'/f'{i}.png', root/'masks'/f'{i}.png'
        image(a)
        mask(m, size=(20, 20) if fault == 'size' else SIZE)
        if fault == 'no mask': m.unlink(); want.add((f'images/{i}.png', 'image without mask'))
        if fault == 'no image': a.unlink(); want.add((f'masks/{i}.png', 'mask without image'))
        if fault == 'size': want.add((f'masks/{i}.png', 'mask of another size'))
        if fault in BAD: a.write_bytes(BAD[fault]); want.add((f'images/{i}.png', 'unreadable'))
        if fault == 'gray': Image.linear_gradient('L').resize(SIZE).save(m); want.add((f'masks/{i}.png', 'not black and white'))
        if fault == 'truncated': a.write_bytes(a.read_bytes()[:700]); want.add((f'images/{i}.png', 'unreadable'))
        if fault == 'twin': image(a.with_suffix('.jpg')); want |= {(f'images/{i}{e}', 'duplicate name') for e in ('.png', '.jpg')}
    found = dataset_problems(root)
    assert set(zip(found.file, found.problem)) == want and (found.remedy.str.len() > 10).all()
    quick = dataset_problems(root, decode=False)
    deep = {i for i, f in enumerate(faults) if f in ('gray', 'truncated')}
    assert set(zip(quick.file, quick.problem)) == {(f, p) for f, p in want if int(Path(f).stem) not in deep}
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        kept = read_dataset(root, strict=False).image.tolist()
    assert kept == sorted(f'images/{i}.png' for i, f in enumerate(faults) if f == 'fine' or i in deep) + ['images/a.png', 'images/b.png']
    if len(quick):
        with pytest.raises(BusiError, match=rf'{len(quick)} problem\(s\)'): read_dataset(root)

@pytest.mark.parametrize('make', [[], ['a.png', 'b.png'], ['images/a.png'], ['benign/', 'malignant/x.txt'], ['notes.txt', 'table.csv'], ['masks/a.png', 'images/']])
def test_an_unknown_layout_lists_the_known_ones(make, tmp_path):
    (tmp_path/'s').mkdir()
    for f in make:
        path = tmp_path/'s'/f
        (path if f.endswith('/') else path.parent).mkdir(parents=True, exist_ok=True)
        if f.endswith('png'): image(path)
        elif not f.endswith('/'): path.write_text('x')
    for read in (read_dataset, read_datasets, dataset_problems, summarize_dataset):
        with pytest.raises(BusiError, match='no dataset of a known layout') as e: read(tmp_path/'s')
        assert str(tmp_path/'s') in str(e.value) and all(name in str(e.value) and layout.example.splitlines()[0] in str(e.value) for name, layout in LAYOUTS.items())

def test_empty_class_folders_are_an_empty_busi(tmp_path):
    for label in ('benign', 'malignant', 'normal'): (tmp_path/label).mkdir()
    with pytest.raises(BusiError, match='hold no PNG images'): read_dataset(tmp_path)
    for label in ('benign', 'malignant', 'normal'):                  # JPEG in BUSI's folders is a set of pairs
        image(tmp_path/label/'a.jpg')
        mask(tmp_path/label/'a_mask.png', () if label == 'normal' else BOX)
    assert read_dataset(tmp_path).attrs['layout'] == 'pairs' and len(read_dataset(tmp_path)) == 3

def test_other_wrong_paths(tmp_path, monkeypatch):
    monkeypatch.delenv('BUSI_PATH', raising=False)
    with pytest.raises(BusiError, match='BUSI_PATH'): read_dataset()
    with pytest.raises(BusiError, match='no such folder'): read_dataset(tmp_path/'none')
    (tmp_path/'a.zip').write_bytes(b'PK')
    with pytest.raises(BusiError, match='it is a file'): read_dataset(tmp_path/'a.zip')
    with pytest.raises(BusiError, match='unknown layout'): read_dataset(tmp_path, layout='busi')
    with pytest.raises(BusiError, match='the layout BUS-BRA'): read_dataset(make_uclm(tmp_path/'u'), layout='BUS-BRA')
    with pytest.raises(BusiError, match='Name at least one'): read_datasets([])
    monkeypatch.setenv('BUSI_PATH', str(make_busi(tmp_path/'b')))
    assert read_dataset().attrs['layout'] == read_datasets(None).attrs['layout'] == 'BUSI'

def test_a_folder_of_several_datasets_is_refused(tmp_path):
    make_busi(tmp_path/'BUSI')
    make_busbra(tmp_path/'BUSBRA')
    with pytest.raises(BusiError, match=r'2 datasets: BUSBRA \(BUS-BRA\), BUSI \(BUSI\)'): read_dataset(tmp_path)
    assert read_dataset(tmp_path, layout='BUSI').attrs['layout'] == 'BUSI'

def test_a_table_that_cannot_be_read(tmp_path):
    root = make_breast(tmp_path/'x')
    (root/'broken.xlsx').write_bytes(b'no spreadsheet')
    with pytest.raises(BusiError, match=r'broken\.xlsx: not a table'): read_dataset(root)
    root = make_busbra(tmp_path/'y')
    (root/'bus_data.csv').write_text('ID,Case\n')
    with pytest.raises(BusiError, match='no column Pathology'): read_dataset(root)


# several sets

def test_several_sets_are_one_table(tmp_path):
    paths = [make_busi(tmp_path/'busi'), make_busbra(tmp_path/'bra'), make_csv(tmp_path/'mine'), make_busbra(tmp_path/'copy')]
    df = read_datasets(paths)
    assert df.image.is_unique and df.source.unique().tolist() == ['BUSI', 'BUS-BRA', 'mine', 'BUS-BRA-2'] and len(df) == 6 + 3 + 3 + 3
    assert all(i.startswith(f'{s}/') for i, s in zip(df.image, df.source)) and df.image[0] == 'BUSI/benign/benign (1).png'
    known = df[df.patient.notna()]
    assert all(p.startswith(f'{s}/') for p, s in zip(known.patient, known.source)) and known.patient.nunique() == 2 + 2 + 2
    assert df.group.dropna().tolist() == ['mine/g1', 'mine/g2', 'mine/g3'] and [s['layout'] for s in df.attrs['sources']] == ['BUSI', 'BUS-BRA', 'CSV', 'BUS-BRA']
    assert len(measure_tumors(df)) == len(df) and count_classes(df).index.tolist() == ['normal', 'benign', 'malignant', 'cyst', 'all']

def test_one_set_keeps_its_keys(tmp_path):
    root = make_busbra(tmp_path/'bra')
    one = read_dataset(root)
    for paths in (root, str(root), [root]): pd.testing.assert_frame_equal(read_datasets(paths), one, check_flags=False)

def test_the_same_folder_twice_is_refused(tmp_path):
    root = make_busi(tmp_path/'data'/'busi')
    (tmp_path/'link').symlink_to(root, target_is_directory=True)
    for second in (root, root.parent, f'{root}/', tmp_path/'link'):
        with pytest.raises(BusiError, match='Name each only once'): read_datasets([root, second])


# masks as a whole, and limits

@pytest.mark.parametrize('box, problem', [((0, 0, 40, 25), 'masks look inverted'), ((0, 0, 40, 30), 'every mask is full'), ((), 'every mask is empty'), (BOX, None)])
def test_masks_that_cannot_be_right(box, problem, tmp_path):
    root = make_pairs(tmp_path/'s')
    for p in (root/'masks').iterdir(): mask(p, box)
    good = make_busbra(tmp_path/'good')
    for df in (read_dataset(root), read_datasets([good, root])):      # a good set beside it does not hide it
        found = check_masks(df)
        assert [p for p, _ in found] == ([problem] if problem else []) and all(d.startswith('s: ') and len(d) > 30 for _, d in found)
    done = CliRunner().invoke(app, ['data', 'summary', str(root)])
    assert done.exit_code == bool(problem) and (problem or '0 problem(s)') in done.output

def test_one_large_tumor_is_no_fault_and_normal_images_may_be_empty(tmp_path):
    root = make_busi(tmp_path/'s')
    mask(root/'benign'/'benign (1)_mask.png', (0, 0, 40, 25))
    df = read_dataset(root)
    assert check_masks(df) == [] and check_masks(df[df.label == 'normal']) == [] and check_masks(df[:0]) == []
    assert check_masks(df.drop(columns=['source', 'patient'])) == []   # `read_busi`'s table will do

@pytest.mark.parametrize('name, missing', [('BUSI', ['No patients']), ('BUS-BRA', ['No image without']), ('BUS-UCLM', []), ('BrEaST', []), ('CSV', []), ('pairs', ['No image without', 'No classes', 'No patients'])])
def test_what_cannot_be_computed_is_said(name, missing, tmp_path):
    s = summarize_dataset(MAKERS[name](tmp_path/'s'))
    assert [any(t.startswith(m) for t in s['limits']) for m in missing] == [True]*len(missing) and len(s['limits']) == len(missing)
    assert s['layout'] == name and s['problems'] == [] and s['masks'] == [] and json.loads(json.dumps(s)) == s
    done = CliRunner().invoke(app, ['data', 'summary', str(tmp_path/'s')])
    assert done.exit_code == 0 and f'layout {name}' in done.output and all(t in done.output for t in s['limits'])
    assert json.loads(CliRunner().invoke(app, ['data', 'summary', str(tmp_path/'s'), '--json']).output) == s

def test_a_set_of_normal_images_only(tmp_path):
    df = read_dataset(make_busi(tmp_path/'s'))
    assert [t.split(':')[0] for t in describe_limits(df[df.label == 'normal'])] == ['No image with a tumor', 'No patients are known']
    assert any(t.startswith('2 images have no class') for t in describe_limits(df.assign(label=['unlabeled']*2 + ['benign']*4)))

def test_summary_of_busi_is_the_old_one_and_more(tmp_path):
    s, old = summarize_dataset(make_busi(tmp_path/'s')), summarize(tmp_path/'s')
    assert {k: s[k] for k in old} == old

def test_lenient_masks_are_counted(tmp_path):
    assert summarize_dataset(make_pairs(tmp_path/'a'))['notes'] == []
    assert summarize_dataset(make_pairs(tmp_path/'b', mask_ending='.jpg'))['notes'][0].startswith('2 masks are not black and white')


# lenient masks

def save(path, a, **kw): Image.fromarray(np.asarray(a, np.uint8)).save(path, **kw)

@given(st.lists(st.sampled_from([0, 1, 2, 64, 100, 127, 128, 254, 255]), min_size=1, max_size=40))
@settings(max_examples=80)
def test_gray_levels_of_lenient_masks(tmp_path_factory, levels):
    path, found = AnyMask(tmp_path_factory.mktemp('m')/'m.png'), set(levels)
    save(path, [levels])
    if found <= {0, 1}: want = [v == 1 for v in levels]
    elif found <= {0, 127, 128, 255}: want = [v > 0 for v in levels]
    else:
        between, white = sum(64 <= v < 192 for v in levels), sum(v >= 192 for v in levels)
        want = None if max(found) < 64 or between > min(len(levels)/20, white) else [v >= 128 for v in levels]
    if want is None:
        with pytest.raises(BusiError, match=r'm\.png: the mask is not black and white'): read_mask(path)
    else: assert read_mask(path).tolist() == [want]

@pytest.mark.parametrize('color', [(0, 255, 0), (255, 0, 0), (128, 0, 0), (255, 255, 255), (0, 0, 255), (255, 255, 0)])
@pytest.mark.parametrize('mode', ['RGB', 'RGBA', 'P'])
def test_colors_are_tumor(color, mode, tmp_path):
    path = tmp_path/'m.png'
    im = Image.new('RGB', SIZE)
    im.paste(color, BOX)
    (im.convert('P', palette=Image.Palette.ADAPTIVE) if mode == 'P' else im.convert(mode)).save(path)
    assert read_mask(AnyMask(path)).sum() == 150
    if color != (255, 255, 255):
        with pytest.raises(BusiError, match='not black and white'): read_mask(path)

@pytest.mark.parametrize('quality', [50, 75, 95])
def test_jpeg_masks(quality, tmp_path):
    yy, xx = np.mgrid[:120, :160]
    disk = ((xx - 70)**2/40**2 + (yy - 60)**2/25**2 < 1)
    for name, a in (('gray', disk*255), ('green', np.dstack([disk*0, disk*255, disk*0]))):
        save(tmp_path/f'{name}.jpg', a, quality=quality)
        got = read_mask(AnyMask(tmp_path/f'{name}.jpg'))
        assert 2*(got & disk).sum()/(got.sum() + disk.sum()) > .98
    save(tmp_path/'empty.jpg', disk*0, quality=quality)
    assert read_mask(AnyMask(tmp_path/'empty.jpg')).sum() == 0

def test_an_image_is_no_mask(tmp_path):
    from busi_unetpp.phantom import simulate
    us, _ = simulate('benign', 3, (120, 160))
    for name in ('a.png', 'a.jpg'):
        Image.fromarray(us).save(tmp_path/name)
        with pytest.raises(BusiError, match='not even nearly'): read_mask(AnyMask(tmp_path/name))

def test_deep_and_float_masks(tmp_path):
    for i, a in enumerate(([[0, 65535]], [[0, 1]], [[0, 255]])):
        Image.fromarray(np.array(a, np.uint16)).save(tmp_path/f'{i}.png')
        assert read_mask(AnyMask(tmp_path/f'{i}.png')).tolist() == [[0, 1]]
    Image.fromarray(np.array([[0, 1]], np.float32)).save(tmp_path/'f.tif')
    assert read_mask(AnyMask(tmp_path/'f.tif')).tolist() == [[0, 1]]

@pytest.mark.parametrize('data', [b'', b'no image'])
def test_a_lenient_mask_that_cannot_be_read(data, tmp_path):
    (tmp_path/'m.png').write_bytes(data)
    with pytest.raises(BusiError, match=r'm\.png'): read_mask(AnyMask(tmp_path/'m.png'))
    mask(tmp_path/'cut.bmp')
    (tmp_path/'cut.bmp').write_bytes((tmp_path/'cut.bmp').read_bytes()[:500])
    with pytest.raises(BusiError, match='truncated or damaged'): read_mask(AnyMask(tmp_path/'cut.bmp'))


# what `predict` takes

@pytest.mark.parametrize('name', [*(n for n in MAKERS if n != 'CSV'), 'beside'])     # a CSV may put masks anywhere, under any name
def test_predict_takes_the_images_and_leaves_the_masks_out(name, tmp_path):
    make = {**MAKERS, 'beside': make_beside}[name]
    df = read_dataset(make(tmp_path/'s'))
    found, refused = find_images(tmp_path/'s', masks=(left := []))
    assert sorted(found) == sorted(df.image_path) and refused == {}
    others = 1 if name == 'BrEaST' else 0
    assert len(left) == df.mask_paths.map(len).sum() + others and set(left).isdisjoint(found)

def test_what_is_a_mask(tmp_path):
    yes = ['a_mask.png', 'a_mask_1.PNG', 'b_Mask.png', 'B_MASK_2.tif', 'c_mask.png', 'case001_tumor.png', 'case001_tumor2.png', 'case001_other1.png',
           'Masks/x.png', 'd/MASKS/benign/y.png', 'f/gt/z.bmp', 'u_mask.jpg']
    no = ['a.jpg', 'b.tiff', 'c.DCM', 'case001.png', 'lonely_mask.png', 'face_masked.png', '_mask.png', 'scan.png', 'scan_other.png', 'IMAGES/x.png', 'd/Images/y.png',
          'e/masks/x.png', 'f/original/z.bmp', 'U.JPG']
    for f in yes + no:
        (tmp_path/f).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/f).write_bytes(b'')
    assert [f for f in yes if not is_mask_file(tmp_path/f)] == [] and [f for f in no if is_mask_file(tmp_path/f)] == []

def test_a_mask_that_is_named_is_taken(tmp_path, monkeypatch):
    root = make_pairs(tmp_path/'s')
    found, _ = find_images([root/'masks'/'a.png', root], masks=(left := []))
    assert [p.parent.name for p in found] == ['masks', 'images', 'images'] and [p.name for p in left] == ['b.png']
    monkeypatch.chdir(root/'masks')
    assert find_images('.', masks=(left := []))[0] == [] and len(left) == 2      # the folder's name counts, wherever one stands
    assert len(find_images('b.png')[0]) == 1


# the real ones

def test_real_busbra(busbra_root):
    df = read_dataset(busbra_root.parent)
    assert len(df) == 1875 and df.patient.nunique() == 1064 and df.label.value_counts().to_dict() == dict(benign=1268, malignant=607)
    assert df.attrs == dict(layout='BUS-BRA', root=str(busbra_root), notes=[]) and df.birads.isin(list('2345')).all() and df.device.nunique() == 4
    assert df.groupby('patient').label.nunique().eq(1).all() and df[~df.patient.duplicated()].label.value_counts().to_dict() == dict(benign=722, malignant=342)
    images, _ = find_images(busbra_root, masks=(left := []))
    assert len(images) == len(left) == 1875

def test_real_busbra_has_no_fault(busbra_root):
    s = summarize_dataset(busbra_root)
    assert s['problems'] == s['masks'] == s['notes'] == [] and s['patients'] == 1064 and [t.split(':')[0] for t in s['limits']] == ['No image without a tumor']

def test_real_busi_and_busbra_together(busi_root, busbra_root):
    df = read_datasets([busi_root, busbra_root])
    assert len(df) == 2655 and df.image.is_unique and df.source.value_counts().to_dict() == {'BUS-BRA': 1875, 'BUSI': 780} and df.patient.nunique() == 1064
