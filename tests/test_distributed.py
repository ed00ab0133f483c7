"Two processes on the processor train as one does: weights, history, scores; one of them writes, and what was interrupted goes on."
import json
import os
import socket
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from busi_unetpp.checkpoint import load_weights
from busi_unetpp.dataset import BusiError
from busi_unetpp.distributed import ShareBatches, process_rank
from busi_unetpp.learner import Recipe
from busi_unetpp.run import read_config, train_run

pytestmark = [pytest.mark.usefixtures('one_thread'), pytest.mark.filterwarnings('ignore::FutureWarning')]

# 11 training images in batches of 2: of the last batch one process has no image at all
RECIPE = dict(name='tiny', size=48, epochs=3, batch_size=2, lr=1e-3, test_size=.3, augment=1., ema=.8, loss='dice_bce',
              model=dict(filters=(4, 6), bottleneck=8, dropout=.3, presence=True))

WORKER = '''
import json, os, sys
from fastai.callback.core import Callback
from busi_unetpp.cli import resumable
from busi_unetpp.learner import Recipe
from busi_unetpp.run import train_run
data, out, recipe, resume, log = json.loads(sys.argv[1])
class Stop(Callback):
    order = 80
    def after_epoch(self):
        if self.epoch == 1 and not resume: raise KeyboardInterrupt
replace = os.replace
def note(a, b):
    with open(f"{log}-{os.environ['RANK']}", 'a') as f: print(os.path.relpath(b, out), file=f)
    replace(a, b)
os.replace = note
try: train_run(None if resume else data, out, None if resume else Recipe(**recipe), 'cpu', resume, cbs=[Stop()])
except KeyboardInterrupt: sys.exit(130)
'''

def launch(world, *args):
    "The exit codes and what was printed, of processes as a launcher starts them."
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = str(s.getsockname()[1])
    def start(rank):
        env = os.environ | dict(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR='127.0.0.1', MASTER_PORT=port,
                                OMP_NUM_THREADS='1', PYTHONWARNINGS='ignore')
        return subprocess.Popen([sys.executable, '-c', WORKER, json.dumps(args)], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    started = [start(r) for r in range(world)]
    try: ended = [p.communicate(timeout=500) for p in started]
    finally:
        for p in started: p.kill()
    return [p.returncode for p in started], ended

@pytest.fixture(scope='module')
def runs(small_phantom, tmp_path_factory):
    "A run by one process, and one by two that was interrupted after its second epoch and resumed."
    folder = tmp_path_factory.mktemp('distributed')
    one = train_run(small_phantom, folder/'one', Recipe(**RECIPE), 'cpu')
    printed = []
    for resume in (False, True):
        codes, ended = launch(2, str(small_phantom), str(folder/'two'), RECIPE, resume, str(folder/'log'))
        assert codes == [0 if resume else 130]*2, ended
        printed.append([e[0] for e in ended])
    return one, folder/'two', printed

def test_two_processes_train_as_one(runs):
    one, two, _ = runs
    a, b = (load_weights(r/'model.safetensors').state_dict() for r in (one, two))
    worst = max((a[k].float() - b[k].float()).abs().max().item() for k in a)
    assert worst < 2e-4, worst
    a, b = (pd.read_csv(r/'history.csv').drop(columns='seconds') for r in (one, two))
    assert a.epoch.tolist() == b.epoch.tolist() == [0, 1, 2]
    np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4)
    assert (one/'split.csv').read_text() == (two/'split.csv').read_text()

def test_it_is_evaluated_once_and_completely(runs):
    one, two, _ = runs
    assert {p.name for p in one.iterdir()} == {p.name for p in two.iterdir()}
    a, b = (json.loads((r/'metrics.json').read_text())['test'] for r in (one, two))
    assert a['images'] == b['images'] and abs(a['loss'] - b['loss']) < 1e-3 and abs(a['iou'] - b['iou']) < 5e-3
    config = read_config(two)
    assert config['processes'] == 2 and len(config['resumed']) == 1 and 'finished' in config and 'processes' not in read_config(one)

def test_the_first_process_writes_alone(runs):
    _, two, printed = runs
    first, second = (f.read_text().split() if f.exists() else [] for f in (two.parent/'log-0', two.parent/'log-1'))
    assert first.count('last.ckpt') == 3 and first.count('metrics.json') == 1
    assert not [n for n in second if not n.startswith('..')]                      # '..': the cache
    assert all(p[0].count('Data check') == 1 and p[1] == '' for p in printed)

def test_more_processes_than_images_in_a_batch(monkeypatch, small_phantom, tmp_path):
    monkeypatch.setenv('WORLD_SIZE', '3')
    assert process_rank() == (0, 3)
    share = ShareBatches()
    monkeypatch.delenv('WORLD_SIZE')
    with pytest.raises(BusiError, match='3 processes cannot share batches of 2 image'):
        train_run(small_phantom, tmp_path/'run', Recipe(**RECIPE), 'cpu', cbs=[share])
