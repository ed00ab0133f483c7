"The real dataset, where BUSI_PATH says it is: counts, every file, and one training step of the paper's network."
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from busi_unetpp.dataset import count_classes, measure_tumors, read_busi
from busi_unetpp.learner import busi_learner
from busi_unetpp.loaders import busi_dls, check_data
from busi_unetpp.preprocess import load_arrays
from busi_unetpp.split import make_split

pytestmark = pytest.mark.skipif('BUSI_PATH' not in os.environ, reason='BUSI_PATH is not set, so the real dataset is NOT tested: set it to the folder of BUSI')
COMMAND = Path(sys.executable).parent/'busi-unetpp'


@pytest.fixture(scope='module')
def busi(): return read_busi()


@pytest.fixture(scope='module')
def arrays(busi, tmp_path_factory):
    with pytest.MonkeyPatch.context() as m:
        m.setenv('BUSI_CACHE', str(tmp_path_factory.mktemp('cache')))
        return load_arrays(busi)


def test_counts_are_the_papers(busi):
    t = count_classes(busi)
    assert t.images.tolist() == [133, 437, 210, 780] and t.masks.tolist() == [133, 454, 211, 798] and t.several_masks['all'] == 17
    assert busi.width.min() == 190 and busi.width.max() == 1048 and busi.height.min() == 310 and busi.height.max() == 719
    assert busi.image[:3].tolist() == ['benign/benign (1).png', 'benign/benign (2).png', 'benign/benign (3).png']
    assert busi.mask_paths[194][2].name == 'benign (195)_mask_2.png'


def test_the_command_sees_the_same():
    done = subprocess.run([COMMAND, 'data', 'summary', '--json'], capture_output=True, text=True)
    s = json.loads(done.stdout)
    assert done.returncode == 0 and s['problems'] == [] and s['counts']['all'] == dict(images=780, masks=798, several_masks=17)


def test_every_file_is_the_published_one():
    done = subprocess.run([COMMAND, 'data', 'verify'], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_record_of_the_analysis_is_what_the_data_say(busi):
    record = pd.read_csv(Path(__file__).parents[1]/'nbs'/'records'/'busi_images.csv')
    pd.testing.assert_frame_equal(measure_tumors(busi).round(6), record)


def test_split_and_data_check(busi, arrays):
    split = make_split(busi)
    assert split.part.value_counts().to_dict() == dict(train=663, test=117)
    checks = check_data(busi, *arrays, split).set_index('check')
    assert not (checks.status == 'error').any()
    assert 'benign (433).png = malignant/malignant (145).png' in checks.detail['duplicates']
    assert abs(arrays[1].mean() - .078) < .001


def test_one_training_step_of_the_papers_network(busi, arrays):
    split = make_split(busi)
    dls = busi_dls(*arrays, split, batch_size=2)
    learn = busi_learner(dls, 'paper')
    assert sum(p.numel() for p in learn.model.parameters()) > 25e6
    before = {n: p.detach().clone() for n, p in learn.model.named_parameters()}
    x, y = dls.train.one_batch()
    assert x.shape == (2, 1, 196, 196)
    learn.create_opt()
    learn.opt.set_hypers(lr=learn.lr, wd=learn.wd)
    loss = learn.loss_func(learn.model.train()(x), y)
    loss.backward()
    learn.opt.step()
    assert torch.isfinite(loss) and 0 < loss < 1
    idle = {f'heads.{j}.{w}' for j in '34' for w in ('weight', 'bias')}
    assert {n for n, p in learn.model.named_parameters() if torch.equal(p, before[n])} == idle

@pytest.mark.parametrize('name', ['strong', 'busi'])
def test_the_shipped_model_reproduces_its_recorded_score(busi_root, name):
    "Through `predict`, as a user calls it; its weights are stored in half precision, so the third decimal may move."
    from busi_unetpp.lesions import score_images, summarize_scores
    from busi_unetpp.predict import load_model, predict
    df, model = read_busi(busi_root), load_model(name, 'cpu')
    recipe, recorded = model.card['recipe'], model.card['by_source'].get('BUSI', model.card['test'])
    test = df[(make_split(df, recipe['split'], fold=recipe['fold'], folds=recipe['folds'], seed=recipe['split_seed']).part == 'test').to_numpy()]
    found = summarize_scores(score_images(test, [predict(p, model).mask.astype(np.float32) for p in test.image_path]))
    for k in ('image_dice_with_tumor', 'image_iou_with_tumor', 'iou', 'accuracy'): assert found[k] == pytest.approx(recorded[k], abs=2e-3)
    assert found['images'] == recorded['images'] and found['clean_normals'] == pytest.approx(recorded['clean_normals'], abs=.04)
