"""Loaders, checkpoints, the learner and whole runs: what is interrupted, full, not a number or in the way, and what a run leaves behind."""
import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback
from matplotlib.figure import Figure
from PIL import Image

from busi_unetpp.checkpoint import load_weights
from busi_unetpp.dataset import BusiError, read_busi
from busi_unetpp.evaluate import evaluate_dls, predict_loader
from busi_unetpp.files import write_csv
from busi_unetpp.learner import Recipe, busi_learner, get_recipe, overfit_one_batch
from busi_unetpp.loaders import ArrayLoader, busi_dls, check_data
from busi_unetpp.losses import DiceLoss
from busi_unetpp.metrics import COUNTS, set_scores
from busi_unetpp.preprocess import load_arrays
from busi_unetpp.run import evaluate_run, open_run, record_run, train_run
from busi_unetpp.split import make_split, read_split

pytestmark = [pytest.mark.usefixtures('one_thread'), pytest.mark.filterwarnings('ignore::FutureWarning')]

TINY = dict(filters=(4, 6, 8), bottleneck=10)
RECIPE = Recipe('tiny', size=48, epochs=3, lr=1e-3, test_size=.3, model=TINY)
LAST = RECIPE.epochs - 1

def names(folder): return sorted(p.name for p in Path(folder).iterdir())
def digest(path): return hashlib.sha256(Path(path).read_bytes()).hexdigest()
def fit(learn, n, *cbs):
    with learn.no_bar(), learn.no_logging(): learn.fit(n, cbs=list(cbs))

@pytest.fixture(scope='module')
def parts(small_phantom):
    "Table, images, masks and split of the phantom."
    df = read_busi(small_phantom)
    return df, *load_arrays(df, 48), make_split(df, test_size=.3)

def learner(parts, out=None, recipe=RECIPE): return busi_learner(busi_dls(*parts[1:], recipe.batch_size, recipe.seed), recipe, out)

class Stop(Callback):
    "The user presses Ctrl-C at some event of some epoch."
    order = 80
    def __init__(self, event, epoch, batch=0):
        def stop():
            if self.epoch == epoch and (event != 'before_batch' or self.training and self.iter == batch): raise KeyboardInterrupt
        setattr(self, event, stop)

class Plan(Callback):
    "Scores by plan in the place of measured ones, and the weights of each epoch."
    order = 60                                                                 # between History and Checkpoint
    def __init__(self, *scores): self.scores, self.weights = scores, []
    def after_epoch(self):
        self.learn.history.rows[-1]['iou'] = self.scores[self.epoch]
        write_csv(self.learn.history.folder/'history.csv', pd.DataFrame(self.learn.history.rows))
        self.weights.append({k: v.clone() for k, v in self.model.state_dict().items()})


# loaders

def loader(n=11, bs=4, **kw):
    rng = np.random.default_rng(0)
    return ArrayLoader(rng.integers(0, 256, (n, 6, 6), dtype=np.uint8), rng.integers(0, 2, (n, 6, 6), dtype=np.uint8), [f'image {i}' for i in range(n)], bs, **kw)

def epoch(dl):
    "Names in the order of one epoch; the pixels must be those of the names."
    seen = []
    for x, y in dl:
        assert x.dtype == y.dtype == torch.float32 and x.shape == y.shape == (len(dl.last), 1, 6, 6)
        i = [dl.names.index(n) for n in dl.last]
        assert torch.equal((x[:, 0]*255).round().byte(), dl.images[i]) and torch.equal(y[:, 0].byte(), dl.masks[i]) and x.max() <= 1
        seen += dl.last
    return seen

def test_each_epoch_shows_every_image_once_in_an_order_of_its_own():
    a, b, c = (loader(shuffle=True, seed=s) for s in (1, 1, 2))
    orders = [epoch(a) for _ in range(3)]
    assert [epoch(b) for _ in range(3)] == orders and [epoch(c) for _ in range(3)] != orders
    assert all(sorted(o) == sorted(a.names) for o in orders) and len({*map(tuple, orders)}) == 3

def test_the_state_of_the_order_can_be_put_back():
    a, b = loader(shuffle=True, seed=1), loader(shuffle=True, seed=5)
    epoch(a)
    b.rng.setstate(a.rng.getstate())
    assert epoch(b) == epoch(a)

def test_without_shuffling_the_order_is_the_arrays_and_the_last_batch_is_smaller():
    dl = loader()
    assert epoch(dl) == epoch(dl) == dl.names and [len(x) for x, _ in dl] == [4, 4, 3] and len(dl) == 3
    assert epoch(loader(shuffle=True).new()) == dl.names and [len(x) for x, _ in dl.new(bs=6)] == [6, 5]

def test_both_parts_hold_their_own_images(parts):
    df, images, masks, split = parts
    dls = busi_dls(images, masks, split, 3)
    for dl, part in ((dls.train, 'train'), (dls.valid, 'test')):
        i = np.flatnonzero(split.part == part)
        assert dl.names == df.image[i].tolist() and np.array_equal(dl.images, images[i]) and np.array_equal(dl.masks, masks[i])
    assert dls.train.shuffle and not dls.valid.shuffle and dls.train.bs == 3

def test_data_check_passes_what_is_right(parts): assert not (check_data(*parts).status == 'error').any()

@pytest.mark.parametrize('check, status', [('sizes', 'error'), ('mask values', 'error'), ('normals', 'error'), ('image values', 'warning'), ('tumors', 'warning'),
    ('classes', 'warning'), ('duplicates', 'warning')])
def test_data_check_finds_what_was_planted(check, status, parts, small_phantom, tmp_path):
    df, images, masks, split = parts[0].copy(), parts[1].copy(), parts[2].copy(), parts[3].copy()
    tumor = int(np.flatnonzero(df.label == 'benign')[3])
    if check == 'sizes': masks = masks[:, :40]
    if check == 'mask values': masks[tumor] *= 255
    if check == 'normals': masks[df.label == 'normal'] = masks[tumor]
    if check == 'image values': images[tumor] = 128
    if check == 'tumors': masks[tumor] = 0
    if check == 'classes': split.loc[split.label == 'malignant', 'part'] = 'train'
    if check == 'duplicates':
        for a, b, sides in ((0, tumor, ['train', 'test']), (1, 2, ['train', 'train'])):
            df.loc[b, 'image_path'] = Path(shutil.copy(df.image_path[a], tmp_path/f'{b}.png'))
            split.loc[[a, b], 'part'] = sides
    found = check_data(df, images, masks, split).set_index('check')
    assert found.status[check] == status
    if check in ('image values', 'tumors'): assert df.image[tumor] in found.detail[check]
    if check == 'normals': assert f'{(df.label == "normal").sum()} image(s), first {df.image[df.label == "normal"].iloc[0]}' in found.detail[check]
    if check == 'duplicates': assert found.detail[check].startswith('2 group(s) of identical images, 1 of them in both sets') and any(
        f'{df.image[a]} = {df.image[b]}' in found.detail[check] for a, b in ((0, tumor), (1, 2)))
    assert found.status['leaks'] == ('warning' if check == 'duplicates' else 'not known')                # identical pixels on both sides are a leak
    other = set(found.index[found.status != 'ok']) - {check, 'leaks'}
    assert other <= ({'tumors', 'normals'} if check == 'mask values' else set())

def leaks(df, parts, split=None):
    _, images, masks, _ = parts
    split = make_split(df) if split is None else split
    return check_data(df, images, masks, split).set_index('check').loc['leaks']

def test_leaks_are_ok_only_if_every_group_is_known(parts):
    df = parts[0]
    n = len(df)
    assert leaks(df, parts).status == 'not known' and f'for {n} of {n} images' in leaks(df, parts).detail and 'busi-unetpp data duplicates PATH' in leaks(df, parts).detail
    known = df.assign(patient=[f'p{i}' for i in range(n)])
    assert leaks(known, parts).status == 'ok' and leaks(known, parts).detail.startswith(f'{n} groups')
    known.loc[3, 'patient'] = None
    assert leaks(known, parts).status == 'not known' and f'for 1 of {n} images' in leaks(known, parts).detail
    one = df.assign(group='all')
    assert leaks(one, parts).status == 'warning' and '1 of them in more than one set' in leaks(one, parts).detail
    assert leaks(one, parts, make_split(one)[['image', 'label', 'part']]).status == 'warning'                # a split without groups

def test_lossless_copies_in_both_sets_are_a_leak(parts, tmp_path):
    from PIL import Image
    df = parts[0].assign(patient=[f'p{i}' for i in range(len(parts[0]))])
    split = make_split(df)
    a, b = (int(np.flatnonzero(split.part == p)[0]) for p in ('train', 'test'))
    assert leaks(df, parts, split).status == 'ok'
    Image.open(df.image_path[a]).convert('L').save(tmp_path/'copy.bmp')
    df.at[b, 'image_path'] = tmp_path/'copy.bmp'
    for s in (split, make_split(df).assign(part=split.part)): assert leaks(df, parts, s).status == 'warning'

def test_data_check_of_sets_without_normals_or_classes(parts):
    df, images, masks, split = parts
    rows = (df.label != 'normal').to_numpy()
    found = check_data(df[rows], images[rows], masks[rows], split[rows]).set_index('check')
    assert set(found.status.drop('leaks')) == {'ok'} and 'no image-level specificity' in found.detail['classes'] and found.detail['normals'] == 'there are none'
    found = check_data(df.assign(label=None), images, masks, split.assign(label=None)).set_index('check')
    assert set(found.status.drop('leaks')) == {'ok'} and 'no class' in found.detail['classes'] and 'no scores by these classes' in found.detail['classes']
    extra = check_data(df, images, masks, split, more=[lambda *args: [('inverted', 'warning', f'{len(args)} given')]]).set_index('check')
    assert tuple(extra.loc['inverted']) == ('warning', '4 given')


# checkpoint and learner

def test_early_stop_keeps_and_restores_the_best(parts, tmp_path):
    learn, plan = learner(parts, tmp_path, get_recipe(RECIPE, patience=3)), Plan(.1, .5, .2, .5, .3, .9, .9)
    fit(learn, 7, plan)
    assert learn.history.rows[-1]['epoch'] == 4 and len(plan.weights) == 5       # three epochs without a better one; as good is not better
    assert (learn.checkpoint.best, learn.checkpoint.best_epoch) == (.5, 1)
    for state in (learn.model.state_dict(), load_weights(tmp_path/'model.safetensors').state_dict()):
        assert all(torch.equal(v, plan.weights[1][k]) for k, v in state.items())
    assert not torch.equal(plan.weights[1]['heads.3.weight'], plan.weights[4]['heads.3.weight'])

def test_patience_starts_anew_with_each_improvement(parts, tmp_path):
    learn = learner(parts, tmp_path, get_recipe(RECIPE, patience=2))
    fit(learn, 9, Plan(.1, .1, .2, .1, .3, .2, .2, .9))
    assert [r['epoch'] for r in learn.history.rows] == list(range(7)) and learn.checkpoint.best_epoch == 4

def test_without_a_folder_the_recipe_is_followed_all_the_same(parts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    learn = learner(parts)
    fit(learn, 1)
    folder = learn.checkpoint.folder
    assert names(tmp_path) == [] and learn.checkpoint.best_epoch == 0 and 'model.safetensors' in names(folder)
    learn.temporary.cleanup()
    assert not folder.exists()

def test_history_is_what_was_measured(parts, tmp_path):
    losses = []
    class Collect(Callback):
        def after_batch(self):
            if self.training: losses.append((self.epoch, self.loss.item(), len(self.xb[0])))
    learn = learner(parts, tmp_path, get_recipe(RECIPE, batch_size=3))
    fit(learn, 2, Collect())
    history = pd.read_csv(tmp_path/'history.csv')
    assert list(history) == ['epoch', 'train_loss', 'valid_loss', 'iou', 'accuracy', 'tumor_iou', 'tumor_dice', 'image_dice', 'image_dice_with_tumor', 'clean_normals', 'lr', 'seconds']
    for e in (0, 1):
        values = [(l, n) for ep, l, n in losses if ep == e]
        assert {n for _, n in values} == {3, 2}                                  # the smaller last batch weighs less
        assert history.train_loss[e] == pytest.approx(sum(l*n for l, n in values)/11)
    assert (history.lr == RECIPE.lr).all() and history.epoch.tolist() == [0, 1]

@pytest.mark.parametrize('model', [dict(deep_supervision=True), dict(kernel_size=3, dropout=.2), dict(depth=2)], ids=lambda m: ','.join(m))
def test_other_networks_train_and_come_back(model, parts, tmp_path):
    recipe = get_recipe(RECIPE, model=TINY | model, per_image_loss=True)
    learn = learner(parts, tmp_path, recipe)
    before = {k: v.clone() for k, v in learn.model.named_parameters()}
    assert overfit_one_batch(learn, steps=3)['steps'] == 3 and all(torch.equal(v, before[k]) for k, v in learn.model.named_parameters())
    fit(learn, 1)
    idle = set() if model.get('deep_supervision') else {k for k in before if k.startswith('heads') and f'.{learn.model.level}.' not in k}
    assert {k for k, v in learn.model.named_parameters() if torch.equal(v, before[k]) and v.ndim == 4} <= idle
    stored, x = load_weights(tmp_path/'model.safetensors'), torch.rand(1, 1, 48, 48)
    assert all(torch.equal(v, learn.model.state_dict()[k]) for k, v in stored.state_dict().items())
    with torch.no_grad(): torch.testing.assert_close(stored(x).logits, learn.model.eval()(x).logits, rtol=1e-4, atol=1e-5)
    assert learn.loss_func.per_image and json.dumps(recipe.model) in (tmp_path/'last.ckpt').read_bytes().decode('latin1')

def test_the_loss_that_is_reported(parts):
    learn = learner(parts)
    probs, counts, loss, _ = predict_loader(learn.model, learn.dls.valid, DiceLoss(per_image=True))
    x, y = (torch.cat(t) for t in zip(*learn.dls.valid))
    with torch.no_grad(): each = [DiceLoss()(learn.model(a[None]), b[None]).item() for a, b in zip(x, y)]
    assert loss == pytest.approx(np.mean(each), abs=1e-5) and counts[:, :2].sum() == (probs > .5).sum()
    for bs in (1, 3):
        other = predict_loader(learn.model, learn.dls.valid.new(bs=bs), DiceLoss(per_image=True))
        assert np.array_equal(other[1], counts) and other[2] == pytest.approx(loss, abs=1e-5)
    metrics, table, _ = evaluate_dls(learn.model, learn.dls)
    assert table.image.tolist() == learn.dls.train.names + learn.dls.valid.names and metrics['test']['images'] == len(counts)


# whole runs

def run(data, out, *cbs, **kw): return train_run(data, out, None if kw.get('resume') else kw.pop('recipe', RECIPE), 'cpu', cbs=cbs, **kw)

@pytest.fixture(scope='module')
def finished(small_phantom, tmp_path_factory):
    "A finished run; not to be written to."
    return run(small_phantom, tmp_path_factory.mktemp('runs')/'whole')

def numbers(out):
    "What two equal runs have in common: metrics, history without its clock, scores of each image, split and weights."
    history = pd.read_csv(out/'history.csv').drop(columns='seconds')
    weights = {k: v.numpy().tobytes() for k, v in load_weights(out/'model.safetensors').state_dict().items()}
    return (out/'metrics.json').read_text(), history.to_csv(), (out/'per_image.csv').read_text(), (out/'split.csv').read_text(), weights

@pytest.fixture
def no_pictures(monkeypatch):
    "Runs that are about numbers: placeholders for the pictures, which take most of a tiny run's time, and a short first look."
    monkeypatch.setattr('busi_unetpp.run.overfit_one_batch', partial(overfit_one_batch, steps=3))
    monkeypatch.setattr(Figure, 'savefig', lambda self, file, **kw: file.write(b'picture'))

FILES = ['by_class.csv', 'by_size.csv', 'calibration.png', 'config.json', 'curves.png', 'evaluation.json', 'figure.png', 'history.csv', 'intervals.csv', 'meanings.csv', 'meanings.png', 'metrics.json',
         'model.safetensors', 'per_image.csv', 'preview.png', 'reliability.csv', 'report.html', 'scores.csv', 'split.csv']

def test_a_run_is_complete(finished, small_phantom):
    assert names(finished) == FILES
    config = json.loads((finished/'config.json').read_text())
    assert {'recipe', 'dataset', 'teachers', 'device', 'versions', 'commit', 'started', 'finished', 'seconds', 'command', 'one_batch'} == set(config)
    assert set(config['recipe']) == {f.name for f in fields(Recipe)}
    assert Recipe(**config['recipe'] | dict(model=TINY)) == RECIPE and config['dataset']['images'] == 16 and Path(config['dataset']['path']) == small_phantom.resolve()
    assert len(pd.read_csv(finished/'history.csv')) == RECIPE.epochs
    for name in ('curves.png', 'figure.png', 'preview.png'):
        with Image.open(finished/name) as im: assert min(im.size) > 300

def test_its_numbers_agree_with_each_other(finished, parts):
    metrics, table, history = json.loads((finished/'metrics.json').read_text()), pd.read_csv(finished/'per_image.csv'), pd.read_csv(finished/'history.csv')
    split = read_split(finished/'split.csv', parts[0])
    assert dict(zip(table.image, table.part)) == dict(zip(split.image, split.part)) and (table[COUNTS].sum(axis=1) == 48*48).all()
    for part in ('train', 'test'):
        rows = table[table.part == part]
        assert {k: metrics[part][k] for k in set_scores(rows[COUNTS])} == pytest.approx(set_scores(rows[COUNTS]))
        share = (rows.tp + rows.fn).sum()/(48*48*len(rows))
        assert metrics[part]['predict_nothing']['accuracy'] == pytest.approx(1 - share) and metrics[part]['images'] == len(rows)
        assert metrics[part]['by_label'] == {l: dict(images=len(g), image_dice=pytest.approx(g.dice.mean()), image_iou=pytest.approx(g.iou.mean())) for l, g in rows.groupby('label')}
    best = history.iou.idxmax()
    assert metrics['best_epoch'] == best and metrics['epochs'] == len(history)
    for k, col in (('iou', 'iou'), ('accuracy', 'accuracy'), ('loss', 'valid_loss'), ('tumor_dice', 'tumor_dice')): assert metrics['test'][k] == pytest.approx(history[col][best], abs=1e-6)

def test_its_report_needs_nothing_else(finished):
    class Links(HTMLParser):
        found = []
        def handle_starttag(self, tag, attrs): self.found += [v for k, v in attrs if k in ('src', 'href')]
    page = (finished/'report.html').read_text()
    Links().feed(page)
    assert len(Links.found) == 5 and all(v.startswith('data:image/png;base64,iVBOR') for v in Links.found) and not re.search(r'url\(|@import|<script', page)
    metrics = json.loads((finished/'metrics.json').read_text())
    for part in ('train', 'test'):
        for k in ('iou', 'accuracy', 'loss'): assert f'{metrics[part][k]:.4f}' in page
    for v in ('0.5667', '0.9124', '0.5963', 'predict nothing', 'not a medical device'): assert v in page

def test_evaluating_again_gives_the_same_numbers(finished, small_phantom, tmp_path):
    out = Path(shutil.copytree(finished, tmp_path/'copy'))
    want = numbers(finished)
    for f in ('metrics.json', 'per_image.csv', 'figure.png', 'curves.png', 'report.html', 'preview.png'): (out/f).unlink()
    assert evaluate_run(out, device='cpu') == json.loads(want[0])
    assert numbers(out) == want and names(out) == FILES and (out/'config.json').read_bytes() == (finished/'config.json').read_bytes()
    moved = Path(shutil.copytree(small_phantom, tmp_path/'moved'))
    assert evaluate_run(out, data=moved, device='cpu') == json.loads(want[0])
    image = moved/'benign'/'benign (3).png'
    Image.fromarray(255 - np.asarray(Image.open(image).convert('L'))).save(image)
    with pytest.warns(UserWarning, match='pixels are not those'): assert evaluate_run(out, data=moved, device='cpu') != json.loads(want[0])

def test_the_whole_evaluation_agrees_with_itself(finished, small_phantom):
    df, scores = read_busi(small_phantom).set_index('image'), pd.read_csv(finished/'scores.csv')
    split = pd.read_csv(finished/'split.csv').set_index('image')
    assert set(scores.image) == set(split.index[split.part == 'test']) and (scores.part == 'test').all()       # no validation part in the paper's split
    assert (scores[COUNTS].sum(axis=1) == df.loc[scores.image, ['width', 'height']].prod(axis=1).to_numpy()).all()  # every pixel of the original
    found, intervals = json.loads((finished/'evaluation.json').read_text()), pd.read_csv(finished/'intervals.csv').set_index('metric')
    pooled = set_scores(scores[COUNTS])
    for k in ('iou', 'accuracy', 'tumor_dice', 'image_dice_with_tumor', 'clean_normals'):
        assert intervals.value[k] == pytest.approx(pooled[k], abs=1e-6) and found['test'][k] == pytest.approx(pooled[k])
    assert (intervals.low.dropna() <= intervals.value[intervals.low.notna()] + 1e-9).all() and found['calibration']['temperature'] == 1
    assert pd.read_csv(finished/'meanings.csv').set_index('name').value['two classes, pooled, original size'] == pytest.approx(pooled['iou'], abs=1e-6)

def test_a_run_compared_with_itself_does_not_differ(finished, tmp_path):
    from busi_unetpp.compare import compare_runs, read_scores, write_compare
    again = Path(shutil.copytree(finished, tmp_path/'again'))
    table = write_compare([finished, again], tmp_path/'out')
    second = table[table.run.str.endswith('again')].dropna(subset='difference')
    assert len(second) > 15 and (second.difference == 0).all() and (second.p == 1).all() and names(tmp_path/'out') == ['compare.csv', 'compare.png']
    scores = pd.read_csv(again/'scores.csv')
    write_csv(again/'scores.csv', scores[1:])                                  # other images: side by side, but no test
    assert compare_runs([finished, again])[lambda t: t.run.str.endswith('again')].p.isna().all()
    write_csv(again/'scores.csv', scores.drop(columns='group'))
    with pytest.raises(BusiError, match="no column 'group'"): read_scores(again)
    (again/'scores.csv').unlink()
    with pytest.raises(BusiError, match='was not evaluated'): read_scores(again)
    with pytest.raises(BusiError, match='no run here'): read_scores(tmp_path/'nowhere')

def test_a_finished_run_is_refused(finished, small_phantom):
    before = {p.name: digest(p) for p in finished.iterdir()}
    for resume in (False, True):
        with pytest.raises(BusiError, match='holds a finished run'): run(small_phantom, finished, resume=resume)
    assert {p.name: digest(p) for p in finished.iterdir()} == before

POINTS = {'in epoch 0, before any checkpoint': [('before_batch', 0, 2)], 'between two epochs': [('after_epoch', 0)], 'in the last epoch': [('before_batch', LAST, 3)],
          'after the last epoch': [('after_epoch', LAST)], 'three times': [('before_batch', 0, 1), ('after_epoch', 0), ('before_batch', 1, 0)]}

@pytest.mark.parametrize('point', POINTS)
def test_an_interrupted_run_ends_with_the_same_numbers(point, finished, small_phantom, tmp_path, no_pictures):
    out, torch_state = tmp_path/'cut', torch.get_rng_state()
    for i, stop in enumerate(POINTS[point]):
        with pytest.raises(KeyboardInterrupt): run(small_phantom, out, Stop(*stop), **dict(resume=True) if i else {})
        torch.manual_seed(i)                                                   # another process has other random numbers
        assert 'finished' not in json.loads((out/'config.json').read_text()) and not [n for n in names(out) if n.startswith('.')]
        assert (out/'last.ckpt').exists() == (stop != POINTS['three times'][0] and stop != ('before_batch', 0, 2))
    with pytest.raises(BusiError, match=r'unfinished run\. Continue it with .*--resume'): run(small_phantom, out)
    with pytest.raises(BusiError, match='this run is not finished'): evaluate_run(out)
    run(None, out, resume=True)
    assert numbers(out) == numbers(finished) and names(out) == FILES
    config, whole = (json.loads((o/'config.json').read_text()) for o in (out, finished))
    assert len(config['resumed']) == len(POINTS[point]) and all(config[k] == whole[k] for k in ('recipe', 'dataset', 'versions'))
    torch.set_rng_state(torch_state)

STRONG = Recipe('small strong', size=48, epochs=3, batch_size=4, lr=1e-3, split='grouped', test_size=.4, loss='dice_bce', smooth=1., schedule='one_cycle', encoder_lr=.5, augment=1., augment_kind='wide', lesion_free=.3, balance=.5, normals=.3, epoch_images=20, ema=.9,
    model=dict(filters=(4, 6), bottleneck=8, deep_supervision=True, presence=True))

@pytest.fixture(scope='module')
def more_phantom(tmp_path_factory):
    from busi_unetpp.phantom import make_phantom
    return make_phantom(tmp_path_factory.mktemp('more')/'phantom', n=48, size=(64, 72), seed=4)

def test_every_option_of_the_strong_recipe_is_resumed_exactly(more_phantom, tmp_path, no_pictures):
    whole, out = tmp_path/'whole', tmp_path/'cut'
    run(more_phantom, whole, recipe=STRONG)
    for i, stop in enumerate((('before_batch', 1, 3), ('after_epoch', 1))):
        with pytest.raises(KeyboardInterrupt): run(more_phantom, out, Stop(*stop), **dict(resume=True) if i else dict(recipe=STRONG))
        torch.manual_seed(i)
    run(None, out, resume=True)
    assert numbers(out) == numbers(whole)
    metrics = json.loads((out/'metrics.json').read_text())
    assert {'train', 'valid', 'test'} < set(metrics)
    history = pd.read_csv(out/'history.csv')
    assert history.lr.iloc[-1] < history.lr.max()/50                          # one cycle ends low
    assert math.isclose(history.iou.max(), metrics['valid']['iou'], rel_tol=1e-4)  # the validation part chose, and it was the average that was validated and kept

def test_the_average_is_kept_and_not_the_raw_weights(parts, tmp_path):
    learn = learner(parts, tmp_path, Recipe(**{f.name: getattr(RECIPE, f.name) for f in fields(Recipe)} | dict(ema=.5, epochs=2)))
    raw = []
    class Raw(Callback):
        order = 100
        def after_train(self): raw.append({k: v.clone() for k, v in self.model.state_dict().items()})
    fit(learn, 2, Raw())
    kept = load_weights(tmp_path/'model.safetensors').state_dict()
    assert all(any(not torch.equal(kept[k], r[k]) for k in kept) for r in raw)

def test_a_planted_leak_is_refused_before_anything_is_trained(more_phantom, tmp_path, no_pictures, monkeypatch):
    df = read_busi(more_phantom)
    split = make_split(df, 'grouped', test_size=.4)
    twin = split[split.part == 'train'].image.iloc[0], split[split.part == 'test'].image.iloc[0]
    path = write_csv(tmp_path/'mine.csv', split)
    from busi_unetpp import split as module
    groups = module.known_groups
    monkeypatch.setattr(module, 'known_groups', lambda d: groups(d).assign(group=lambda g: g.group.where(~d.image.isin(twin), 'one lesion')))
    with pytest.raises(BusiError, match='mine.csv: 1 group') as e: run(more_phantom, tmp_path/'run', recipe=RECIPE, split=path)
    assert all(t in str(e.value) for t in twin) and not (tmp_path/'run'/'config.json').exists()
    run(more_phantom, tmp_path/'run', recipe=RECIPE, split=path, allow_leaks=True, epochs=1)
    assert 'leaks' in (tmp_path/'run'/'report.html').read_text()

def test_a_published_list_trains_on_what_it_names(more_phantom, tmp_path, no_pictures):
    df = read_busi(more_phantom)
    lesions = df[df.label != 'normal'].image.tolist()
    (tmp_path/'train.txt').write_text('\n'.join(lesions[:20]))
    (tmp_path/'test.txt').write_text('\n'.join(lesions[20:28]))
    run(more_phantom, tmp_path/'run', recipe=RECIPE, split=tmp_path, epochs=1)
    assert pd.read_csv(tmp_path/'run'/'per_image.csv').image.tolist() == lesions[:28]
    assert evaluate_run(tmp_path/'run', device='cpu') == json.loads((tmp_path/'run'/'metrics.json').read_text())

def test_an_early_stop_is_remembered(small_phantom, tmp_path, no_pictures):
    class StopAfterFit(Callback):
        def after_fit(self): raise KeyboardInterrupt
    plan = (.5, .1, .2, .9, .9)
    recipe = get_recipe(RECIPE, patience=2, epochs=5)
    with pytest.raises(KeyboardInterrupt): run(small_phantom, tmp_path/'run', Plan(*plan), StopAfterFit(), recipe=recipe)
    assert len(pd.read_csv(tmp_path/'run'/'history.csv')) == 3
    run(None, tmp_path/'run', Plan(*plan), resume=True)
    assert len(pd.read_csv(tmp_path/'run'/'history.csv')) == 3

def test_a_resumed_run_keeps_its_first_look(small_phantom, tmp_path, no_pictures):
    with pytest.raises(KeyboardInterrupt): run(small_phantom, tmp_path/'run', Stop('after_epoch', 0))
    run(None, tmp_path/'run', resume=True, epochs=1)
    assert 'one_batch' in json.loads((tmp_path/'run'/'config.json').read_text())

@pytest.fixture(scope='module')
def cut(small_phantom, tmp_path_factory):
    "A run that was interrupted after its first epoch; not to be written to."
    out = tmp_path_factory.mktemp('runs')/'cut'
    with pytest.raises(KeyboardInterrupt): run(small_phantom, out, Stop('after_epoch', 0))
    return out

@pytest.mark.parametrize('kw, why', [(dict(size=64), "size 48, not 64"), (dict(seed=1), 'seed 42, not 1'), (dict(batch_size=4), 'batch_size 2, not 4'), (dict(recipe='demo'), "name 'tiny', not 'demo'"),
    (dict(recipe='papper'), 'papper'), (dict(device='abacus'), "device 'abacus'"), (dict(data='elsewhere'), 'no such folder')])
def test_what_cannot_go_on_with_another_recipe(kw, why, cut):
    before = {p.name: digest(p) for p in cut.iterdir()}
    with pytest.raises(BusiError, match=why): train_run(**dict(data=None, out=cut, resume=True) | kw)
    assert {p.name: digest(p) for p in cut.iterdir()} == before

def test_what_cannot_go_on_with_other_pixels(cut, small_phantom, tmp_path, no_pictures):
    out, data = shutil.copytree(cut, tmp_path/'cut'), Path(shutil.copytree(small_phantom, tmp_path/'data'))
    image = data/'benign'/'benign (3).png'
    Image.fromarray(255 - np.asarray(Image.open(image).convert('L'))).save(image)
    with pytest.raises(BusiError, match='pixels have changed'): run(data, out, resume=True)
    (data/'benign'/'benign (9).png').unlink()
    (data/'benign'/'benign (9)_mask.png').unlink()
    with pytest.raises(BusiError, match='not in the dataset'): run(data, out, resume=True)

@pytest.mark.parametrize('damage', [lambda b: b'', lambda b: b[:len(b)//2], lambda b: b'\x80\x02x'], ids=['empty', 'cut', 'other'])
def test_what_cannot_go_on_with_a_damaged_checkpoint(damage, cut, tmp_path):
    out = Path(shutil.copytree(cut, tmp_path/'cut'))
    (out/'last.ckpt').write_bytes(damage((out/'last.ckpt').read_bytes()))
    with pytest.raises(BusiError, match='last.ckpt: cannot be read'): run(None, out, resume=True)

class Poison(Callback):
    def __init__(self, epoch, batch): self.at = epoch, batch
    def after_pred(self):
        if self.training and (self.epoch, self.iter) == self.at: self.pred.logits, self.images = self.pred.logits*math.nan, list(self.dl.last)

def test_a_loss_that_is_no_number_stops_and_says_where(finished, small_phantom, tmp_path, no_pictures):
    poison = Poison(1, 2)
    with pytest.raises(BusiError) as e: run(small_phantom, tmp_path/'run', poison)
    assert str(e.value).startswith(f"The training loss is nan in epoch 1, batch 2 ({', '.join(poison.images)})") and len(poison.images) == 2
    assert 'last.ckpt' in names(tmp_path/'run') and len(pd.read_csv(tmp_path/'run'/'history.csv')) == 1
    run(None, tmp_path/'run', resume=True)                                     # without the poison it ends as if nothing had been
    assert numbers(tmp_path/'run') == numbers(finished)

def test_nan_in_validation_is_not_taken_for_a_network_that_finds_nothing(parts, tmp_path):
    class Blind(Callback):
        def after_pred(self):
            if not self.training: self.pred.logits = self.pred.logits*math.nan
    learn = learner(parts, tmp_path)
    with pytest.raises(BusiError, match='validation loss is nan in epoch 0'): fit(learn, 1, Blind())
    assert not (tmp_path/'model.safetensors').exists()

FULL = '''
import hashlib, resource, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from fastai.callback.core import Callback
from busi_unetpp.dataset import BusiError
from busi_unetpp.learner import Recipe
from busi_unetpp.run import train_run
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
data, out = sys.argv[1], Path(sys.argv[2])
def digests(): return {p: hashlib.sha256((out/p).read_bytes()).hexdigest() for p in ('last.ckpt', 'model.safetensors')}
class Fill(Callback):
    order = 80
    def after_epoch(self):
        if self.epoch == 0:
            kept.append(digests())
            limit((out/'model.safetensors').stat().st_size + 2000)             # room for the weights, not for the state
def limit(n): resource.setrlimit(resource.RLIMIT_FSIZE, (n, resource.RLIM_INFINITY))
def attempt(*args, **kw):
    try: train_run(*args, device='cpu', **kw)
    except BusiError as e: print('BUSI ERROR', e)
    assert not [p for p in out.iterdir() if p.name.startswith('.')], 'temporary files are left'
kept = []
attempt(data, out, Recipe('tiny', size=48, epochs=3, lr=1e-3, test_size=.3, model=dict(filters=(4, 6, 8), bottleneck=10)), cbs=[Fill()])
assert digests()['last.ckpt'] == kept[0]['last.ckpt'], 'the old state is not what it was'
limit(4096)                                                                    # now not even for the weights
kept.append(digests())
attempt(None, out, resume=True)
assert digests() == kept[1], 'the old checkpoint is not what it was'
'''

@pytest.mark.skipif(sys.platform == 'win32', reason='needs a limit on the size of files')
def test_a_disk_that_is_really_full_costs_no_checkpoint(finished, small_phantom, tmp_path, no_pictures):
    r = subprocess.run([sys.executable, '-W', 'ignore', '-c', FULL, small_phantom, tmp_path/'run'], capture_output=True, text=True, timeout=300)
    assert r.returncode == 0, r.stderr
    said = re.findall(r'BUSI ERROR \S+/run/(\S+): could not be written: the file size limit is reached', r.stdout)
    assert said[0] == 'last.ckpt' and said[1] in ('model.safetensors', 'last.ckpt')
    run(None, tmp_path/'run', resume=True)                                     # with space again it goes on
    assert numbers(tmp_path/'run') == numbers(finished) and names(tmp_path/'run') == FILES

def test_a_folder_that_cannot_be_written(small_phantom, tmp_path):
    (tmp_path/'file').write_text('mine')
    places = [tmp_path/'file', tmp_path/'file'/'run'] + ([Path('/proc/busi_unetpp/run')] if Path('/proc/self').exists() else [])
    if hasattr(os, 'geteuid') and os.geteuid() != 0:                            # permissions do not stop root
        (tmp_path/'closed').mkdir(mode=0o555)
        places.append(tmp_path/'closed'/'run')
    for out in places:
        with pytest.raises(BusiError, match='could not be written') as e: run(small_phantom, out)
        assert str(out) in str(e.value)
    assert (tmp_path/'file').read_text() == 'mine'

@pytest.mark.parametrize('make, why', [('thesis.tex', 'not empty and holds no run'), ('config.json', 'cannot be read')])
def test_a_folder_that_holds_something_else(make, why, small_phantom, tmp_path):
    (tmp_path/make).write_text('{')
    with pytest.raises(BusiError, match=why): run(small_phantom, tmp_path)
    assert names(tmp_path) == [make]

def test_an_unfinished_run_without_checkpoint_or_without_anything(tmp_path):
    with pytest.raises(BusiError, match='nothing to resume'): run(None, tmp_path/'new', resume=True)
    assert not (tmp_path/'new').exists() and open_run(tmp_path/'new').is_dir()

@pytest.mark.parametrize('kw, why', [(dict(recipe='papper'), 'unknown recipe'), (dict(size=47), 'size 47'), (dict(size=1025), 'size 1025'), (dict(batch_size=0), 'batch_size 0'),
    (dict(epochs=-1), 'epochs -1'), (dict(lr=-1.), 'lr -1'), (dict(device='abacus'), "device 'abacus'"), (dict(device='cuda:99'), 'cuda:99'), (dict(data='nowhere'), 'nowhere: no such folder')])
def test_a_wrong_request_leaves_nothing_behind(kw, why, small_phantom, tmp_path):
    with pytest.raises(BusiError, match=why): train_run(**dict(data=small_phantom, out=tmp_path/'run', recipe=RECIPE) | kw)
    assert names(tmp_path) == []

@pytest.mark.parametrize('fault, why', [('gray mask', 'not black and white'), ('cut image', 'truncated'), ('no mask', 'image without mask'), ('tumor in a normal', 'The data check failed: normals'),
    ('other size', 'mask of another size'), ('text', 'unreadable')])
def test_a_faulty_dataset_is_refused_by_file_before_training(fault, why, small_phantom, tmp_path):
    data = Path(shutil.copytree(small_phantom, tmp_path/'data'))
    image, mask = data/'normal'/'normal (2).png', data/'normal'/'normal (2)_mask.png'
    size = Image.open(mask).size
    if fault == 'gray mask': Image.linear_gradient('L').resize(size).save(mask)
    if fault == 'cut image': image.write_bytes(image.read_bytes()[:-100])
    if fault == 'no mask': mask.unlink()
    if fault == 'tumor in a normal': Image.new('1', size, 1).save(mask)
    if fault == 'other size': Image.new('1', (9, 9)).save(mask)
    if fault == 'text': image.write_text('hello')
    with pytest.raises(BusiError, match=why) as e: run(data, tmp_path/'run')
    assert 'normal (2)' in str(e.value) and (not (tmp_path/'run').exists() or names(tmp_path/'run') == [])

def test_a_given_split_is_used_and_a_wrong_one_refused(small_phantom, parts, tmp_path, no_pictures):
    chosen = make_split(parts[0], test_size=.4, seed=9)
    out = run(small_phantom, tmp_path/'run', split=write_csv(tmp_path/'mine.csv', chosen), epochs=1)
    assert read_split(out/'split.csv', parts[0]).equals(chosen) and json.loads((out/'metrics.json').read_text())['test']['images'] == 7
    with pytest.raises(BusiError, match='mine.csv'): run(small_phantom, tmp_path/'other', split=write_csv(tmp_path/'mine.csv', chosen[1:]))

def test_a_damaged_run_cannot_be_evaluated(finished, tmp_path):
    with pytest.raises(BusiError, match='has no config.json'): evaluate_run(tmp_path)
    out = Path(shutil.copytree(finished, tmp_path/'copy'))
    (out/'model.safetensors').write_bytes((out/'model.safetensors').read_bytes()[:999])
    with pytest.raises(BusiError, match='model.safetensors: not the weights'): evaluate_run(out)
    (out/'config.json').write_text('[')
    with pytest.raises(BusiError, match='config.json: cannot be read'): evaluate_run(out)

def test_a_run_below_home(finished, monkeypatch):
    monkeypatch.setenv('HOME', str(finished.parent.parent))
    relative = Path('~')/finished.relative_to(finished.parent.parent)
    with pytest.raises(BusiError, match='no such folder'): evaluate_run(relative, data='/nowhere')


# folders that are claimed, killed, damaged or foreign

def start(data, out, **kw):
    "A training in a process of its own."
    code = ('import torch; torch.set_num_threads(1)\nfrom busi_unetpp.learner import Recipe\nfrom busi_unetpp.run import train_run\n'
            f'train_run({str(data)!r}, {str(out)!r}, Recipe("tiny", size=48, lr=1e-3, test_size=.3, model={TINY!r}, **{dict(dict(epochs=1), **kw)!r}), "cpu")')
    return subprocess.Popen([sys.executable, '-W', 'ignore', '-c', code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

def test_two_trainings_into_one_new_folder_do_not_mix(small_phantom, tmp_path):
    both = [start(small_phantom, tmp_path/'run', seed=s) for s in (1, 2)]
    ends = [p.communicate() for p in both]
    assert sorted(p.returncode for p in both) == [0, 1], ends
    seed = 1 + [p.returncode for p in both].index(0)
    assert json.loads((tmp_path/'run'/'config.json').read_text())['recipe']['seed'] == seed
    lost = next(err for p, (_, err) in zip(both, ends) if p.returncode)
    assert 'another process is writing there' in lost or 'holds a finished run' in lost

KILL = '''
import os, signal
from pathlib import Path
from busi_unetpp import files, run
real = files.write_file
def write(path, data):
    if Path(path).name == {name!r} and {before}: os.kill(os.getpid(), signal.SIGKILL)
    real(path, data)
    if Path(path).name == {name!r}: os.kill(os.getpid(), signal.SIGKILL)
files.write_file = run.write_file = write
'''

@pytest.mark.parametrize('name, before', [('config.json', True), ('config.json', False), ('split.csv', True), ('split.csv', False)])
def test_killed_at_its_first_files_a_run_starts_or_goes_on(name, before, small_phantom, tmp_path, no_pictures):
    out = tmp_path/'run'
    code = KILL.format(name=name, before=before) + f'from busi_unetpp.learner import Recipe\nrun.train_run({str(small_phantom)!r}, {str(out)!r}, Recipe("tiny", size=48, epochs=3, lr=1e-3, test_size=.3, model={TINY!r}), "cpu")'
    assert subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True).returncode == -9
    assert any(n.startswith('.busi-') for n in names(out))
    begun = (out/'split.csv').exists()
    if begun:
        with pytest.raises(BusiError, match='--resume'): run(small_phantom, out)
    elif (out/'config.json').exists():
        with pytest.raises(BusiError, match='Start it again without --resume'): run(None, out, resume=True)
    run(None if begun else small_phantom, out, resume=begun)
    assert names(out) == FILES

def test_a_folder_that_is_removed_during_training_is_not_called_finished(small_phantom, tmp_path, no_pictures):
    class Remove(Callback):
        order = 54
        def after_epoch(self):
            if self.epoch == 1: shutil.rmtree(tmp_path/'run')
    with pytest.raises(BusiError, match='was removed while'): run(small_phantom, tmp_path/'run', Remove())
    assert not (tmp_path/'run'/'config.json').exists()

def test_a_split_that_is_removed_during_training_is_noticed(small_phantom, tmp_path, no_pictures):
    class Remove(Callback):
        def after_epoch(self): (tmp_path/'run'/'split.csv').unlink(missing_ok=True)
    with pytest.raises(BusiError, match='split.csv was removed'): run(small_phantom, tmp_path/'run', Remove())
    assert 'finished' not in json.loads((tmp_path/'run'/'config.json').read_text())

def test_pretrained_weights_are_not_opened_when_a_run_is_resumed(cut, small_phantom, tmp_path, no_pictures, monkeypatch):
    from busi_unetpp import learner
    monkeypatch.setattr(learner, 'load_pretrained', lambda *args: pytest.fail('weights were loaded'))
    for with_checkpoint in (True, False):
        out = Path(shutil.copytree(cut, tmp_path/f'cut{with_checkpoint}'))
        config = json.loads((out/'config.json').read_text())
        config['recipe']['pretrained'] = str(tmp_path/'weights.pth')
        (out/'config.json').write_text(json.dumps(config))
        if with_checkpoint: run(None, out, resume=True)
        else:
            (out/'last.ckpt').unlink()
            with pytest.raises(BusiError, match='weights from a file .* are not loaded when a run is resumed'): run(None, out, resume=True)

@pytest.mark.parametrize('field, value', [(f.name, v) for f in fields(Recipe) for v in (None, 'x', -1, [1], {'a': 1}, 1e400, 10**30) if f.type in (int, float, str, bool, dict) and not (f.type is str and v == 'x') and not (f.type is dict and v == {'a': 2})])
def test_a_recipe_takes_no_wrong_types(field, value):
    with pytest.raises(BusiError, match=field if field != 'model' else 'network|recipe'): Recipe(**{field: value})

@pytest.mark.parametrize('change', [{'recipe': None}, {'recipe': {}}, {'recipe': {'nme': 1}}, {'dataset': 5}, {'dataset': {'name': 'x', 'images': 2}}, {'command': 5}, {'versions': 'x'}], ids=str)
def test_a_configuration_without_its_fields_is_named(change, cut, finished, tmp_path):
    uses = dict(resume=(cut, lambda out: run(None, out, resume=True)), evaluate=(finished, evaluate_run), record=(finished, lambda out: record_run(out, out/'record')))
    if change == {'dataset': {'name': 'x', 'images': 2}}: del uses['record']            # which needs no path of the data
    for name, (source, use) in uses.items():
        out = Path(shutil.copytree(source, tmp_path/name))
        (out/'config.json').write_text(json.dumps(json.loads((out/'config.json').read_text()) | change))
        with pytest.raises(BusiError, match='config.json'): use(out)

@pytest.mark.parametrize('name', ['config.json', 'history.csv', 'split.csv', 'choices.json', 'model.safetensors'])
def test_mutated_run_folders_give_one_kind_of_error(name, finished, tmp_path, monkeypatch):
    "Mutations of each file that `evaluate` reads: a value of another kind, a byte, other encodings, a part."
    from busi_unetpp import run as run_module
    out, rng = Path(shutil.copytree(finished, tmp_path/'run')), np.random.default_rng(0)
    if name == 'choices.json': (out/name).write_text('{"presence_threshold": 0.5, "points": [], "smallest": 0.0, "tta": false}')
    whole = (out/name).read_bytes()
    monkeypatch.setattr(run_module, 'evaluate_dls', lambda *args: (_ for _ in ()).throw(BusiError('reached the scores')))
    def mutated():
        yield from (b'', whole[:len(whole)//2], b'\xff\xfe' + whole, whole.decode('latin-1').encode('utf-16'), b'[]', b'{}', b'null', b'\0'*50, whole.replace(b',', b';'))
        for _ in range(8):
            at = int(rng.integers(len(whole)))
            yield whole[:at] + rng.bytes(int(rng.integers(4))) + whole[at + int(rng.integers(4)):]
    for data in mutated():
        (out/name).write_bytes(data)
        with pytest.raises(BusiError):
            run_module.read_choices(out)
            run_module._read_history(out, 'iou')
            evaluate_run(out)

def test_mutated_checkpoints_give_one_kind_of_error(cut, tmp_path, parts):
    import io
    df, images, masks, split = parts
    out = Path(shutil.copytree(cut, tmp_path/'cut'))
    learn = busi_learner(busi_dls(images, masks, split, 2, 42, torch.device('cpu')), RECIPE, out)
    good = torch.load(out/'last.ckpt', weights_only=True)
    def resume(state):
        buf = io.BytesIO()
        torch.save(state, buf)
        (out/'last.ckpt').write_bytes(buf.getvalue())
        return learn.checkpoint.resume()
    assert resume(good) == 0
    wrong = [None, 'x', 5, -1, [], {}, [{}], torch.zeros(3), (1, 2)]
    for state in [*wrong, *({k: v for k, v in good.items() if k != gone} for gone in good if gone not in ('raw',))]:
        with pytest.raises(BusiError, match='last.ckpt'): resume(state)
    for k in good:
        for v in wrong:
            if k == 'cuda' and isinstance(v, list) or k == 'raw' and (v is None or isinstance(v, dict)) or k == 'best' and isinstance(v, int): continue      # right, or not looked at here
            with pytest.raises(BusiError, match='last.ckpt'): resume(good | {k: v})
    for opt in ({'state': {}, 'param_groups': []}, {**good['opt'], 'state': 5} if 'state' in good['opt'] else {}): 
        with pytest.raises(BusiError, match='last.ckpt'): resume(good | dict(opt=opt))
    assert resume(good) == 0

@pytest.mark.parametrize('change', [lambda t: t.replace('dice', 'dcie'), lambda t: t.replace('0.', 'zero.'), lambda t: t[:60], lambda t: '', lambda t: '\ufeff\0' + t], ids=['column', 'number', 'cut', 'empty', 'null'])
def test_damaged_scores_are_named(change, finished, tmp_path):
    from busi_unetpp.compare import read_scores
    shutil.copytree(finished, tmp_path/'run')
    path = tmp_path/'run'/'scores.csv'
    path.write_text(change(path.read_text()))
    with pytest.raises(BusiError, match='scores.csv.*busi-unetpp evaluate'): read_scores(tmp_path/'run')


# names in a dataset

EVIL = {'benign (1)': '$x^^y$ (1)', 'benign (2)': 'caf\udce9 (2)', 'benign (3)': '\x1b[2J\r (3)', 'normal (1)': '[red] (1)', 'malignant (1)': '=cmd()'}

def test_a_dataset_of_evil_names_trains_evaluates_and_is_recorded(small_phantom, tmp_path, capsys):
    from busi_unetpp.compare import read_scores
    data = Path(shutil.copytree(small_phantom, os.fsdecode(os.fsencode(tmp_path) + b'/caf\xe9 $a^^b$')))
    for old, new in EVIL.items():
        for p in sorted((data/old.split()[0]).glob(f"{old.replace('(', '[(]')}*.png")): p.rename(p.with_name(p.name.replace(old, new)))
    out = run(data, tmp_path/'run')
    assert 'finished' in json.loads((out/'config.json').read_text()) and names(out) == FILES
    evaluate_run(out)
    record_run(out, tmp_path/'record', pictures=True)
    assert len(read_scores(out))
    keys = set(pd.read_csv(out/'split.csv').image)
    assert {r'benign/caf\xe9 (2).png', r'benign/\x1b[2J\r (3).png', 'benign/$x^^y$ (1).png'} <= keys
    for p in out.iterdir():
        if p.suffix in ('.csv', '.json', '.html'): assert not set(p.read_text(encoding='utf-8')) & set('\x1b\r'), p
    assert '\x1b' not in capsys.readouterr().out
