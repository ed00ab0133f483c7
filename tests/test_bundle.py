"Bundles: the same table, split, weights and draws as from the folder, and one clear message for each that cannot be used."
import json
import re
from configparser import ConfigParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from busi_unetpp import encoder as encoders
from busi_unetpp.bundle import LIBRARIES, make_bundle, pretrained_encoder, self_test, write_bundle
from busi_unetpp.dataset import BusiError
from busi_unetpp.encoder import encoder_file, save_encoder
from busi_unetpp.generalization import holds_images_of
from busi_unetpp.groups import known_groups, pixel_digests
from busi_unetpp.learner import Recipe, busi_learner, get_recipe
from busi_unetpp.loaders import busi_dls
from busi_unetpp.preprocess import load_arrays
from busi_unetpp.run import evaluate_run, train_run
from busi_unetpp.sources import read_datasets, summarize_dataset
from busi_unetpp.split import make_split

pytestmark = [pytest.mark.usefixtures('one_thread'), pytest.mark.filterwarnings('ignore::FutureWarning'),
              pytest.mark.filterwarnings('ignore:The least populated class')]

TINY = Recipe('tiny', size=48, epochs=1, lr=1e-3, test_size=.3, model=dict(filters=(4, 6), bottleneck=8))

@pytest.fixture(scope='module')
def clinic(tmp_path_factory):
    "A second set, with patients, groups, and images whose class is not known."
    root, rng, lines = tmp_path_factory.mktemp('clinic'), np.random.default_rng(0), ['image,mask,label,patient,group,birads']
    for i in range(12):
        Image.fromarray(rng.integers(0, 255, (70, 80), dtype=np.uint8)).save(root/f'{i}.png')
        mask = np.zeros((70, 80), np.uint8)
        mask[20:40, 10 + i:50] = 255
        Image.fromarray(mask).save(root/f'{i}_m.png')
        lines.append(f"{i}.png,{i}_m.png,{('benign', 'malignant')[i % 2] if i > 1 else ''},{'' if i > 9 else i//2},{'g' if i > 10 else ''},{i % 6}")
    (root/'set.csv').write_text('\n'.join(lines) + '\n')
    return root

def bundled(data, folder, size=48):
    df = read_datasets(data)
    return df, read_datasets(write_bundle(folder/f'set-{size}.npz', df, *load_arrays(df, size)))

def test_one_set_and_two_read_the_same(small_phantom, clinic, tmp_path):
    for n, data in enumerate((small_phantom, clinic, [small_phantom, clinic])):
        (tmp_path/str(n)).mkdir()
        df, held = bundled(data, tmp_path/str(n))
        same = [c for c in df if c not in ('image_path', 'mask_paths', 'width', 'height')]
        assert list(held) == list(df)
        assert held[same].astype(object).where(held[same].notna(), None).equals(df[same].astype(object).where(df[same].notna(), None))
        assert (pixel_digests(held) == pixel_digests(df)).all() and known_groups(held).equals(known_groups(df))
        for a, b in zip(load_arrays(held, 48), load_arrays(df, 48)): assert (a == b).all()
        assert make_split(held, 'paper', .3).equals(make_split(df, 'paper', .3))
        assert (held.mask_paths.map(bool) == df.mask_paths.map(bool)).all()

def test_a_bundle_can_be_summarized_and_joined(small_phantom, clinic, tmp_path):
    _, held = bundled(small_phantom, tmp_path)
    found = summarize_dataset(tmp_path/'set-48.npz')
    assert found['layout'] == 'bundle' and not found['problems'] and found['sizes']['width']['max'] == 48
    both = read_datasets([tmp_path/'set-48.npz', clinic])
    assert len(both) == len(held) + 12 and both.source.nunique() == 2
    with pytest.raises(BusiError, match='the same dataset'): read_datasets([tmp_path/'set-48.npz']*2)

def test_the_carried_encoder_starts_the_same_training(small_phantom, tmp_path, monkeypatch):
    recipe, df = get_recipe('fast', size=48), read_datasets(small_phantom)
    save_encoder(pretrained_encoder(recipe), encoder_file(recipe.model['encoder'], tmp_path))
    arrays, split = load_arrays(df, 48), make_split(df, 'paper', .3)
    def start():
        learn = busi_learner(busi_dls(*arrays, split), recipe)
        return learn.model.state_dict(), torch.get_rng_state()
    here, draws = start()
    monkeypatch.setattr(encoders, '_package_weights', lambda name: None)
    monkeypatch.setattr(encoders, 'encoder_file', lambda name: encoder_file(name, tmp_path))
    there, others = start()
    assert all(torch.equal(here[k], there[k]) for k in here) and torch.equal(draws, others)

def test_brought_back_and_moved(small_phantom, tmp_path):
    df, _ = bundled(small_phantom, tmp_path)
    here = train_run(small_phantom, tmp_path/'here', TINY, 'cpu')
    there = train_run(tmp_path/'set-48.npz', tmp_path/'there', TINY, 'cpu')
    (tmp_path/'set-48.npz').unlink()
    there = there.rename(tmp_path/'home')
    assert (here/'model.safetensors').read_bytes() == (there/'model.safetensors').read_bytes()
    assert holds_images_of(there, small_phantom)
    assert evaluate_run(there, small_phantom)['test'] == evaluate_run(here)['test']
    assert (there/'scores.csv').read_text() == (here/'scores.csv').read_text()
    with pytest.raises(BusiError, match='no such'): evaluate_run(there)

def test_another_size_is_refused_before_anything_is_trained(small_phantom, tmp_path):
    bundled(small_phantom, tmp_path)
    with pytest.raises(BusiError, match='set-48.npz.* holds 48 x 48 pixels, not 64 x 64. Train with --size 48'):
        train_run(tmp_path/'set-48.npz', tmp_path/'run', TINY, 'cpu', size=64)
    assert not (tmp_path/'run'/'config.json').exists()

def test_the_self_test_sees_other_pixels(small_phantom, tmp_path):
    bundle = make_bundle(small_phantom, tmp_path/'bundle', 48, 'demo')
    data = bundle/json.loads((bundle/'bundle.json').read_text())['data']
    df = read_datasets(small_phantom)
    images, masks = load_arrays(df, 48)
    write_bundle(data, df, images[::-1], masks)
    with pytest.raises(BusiError, match='not the images that the bundle was made with'): self_test(bundle, 'cpu')
    data.unlink()
    with pytest.raises(BusiError, match='no such'): self_test(bundle, 'cpu')
    with pytest.raises(BusiError, match='no bundle'): self_test(tmp_path)

def test_run_md_names_only_commands_that_exist(small_phantom, tmp_path):
    from typer.main import get_command
    from busi_unetpp.cli import app
    bundle = make_bundle(small_phantom, tmp_path/'bundle', 48, 'paper')
    text = (bundle/'RUN.md').read_text()
    options = {o for p in get_command(app).commands['train'].params for o in p.opts}
    words = re.findall(r'busi\.py train (.*)', text)
    assert words and all(set(re.findall('--[a-z-]+', w)) <= options for w in words)
    assert '--allow-leaks' in text and (bundle/'splits'/'paper.csv').is_file()
    compile((bundle/'busi.py').read_text(), 'busi.py', 'exec')

def test_the_list_of_libraries_is_of_required_ones():
    config = ConfigParser()
    config.read(Path(__file__).parents[1]/'settings.ini')
    required = {re.split('[<>=]', r)[0] for r in config['DEFAULT']['requirements'].split()}
    assert set(LIBRARIES) <= required
