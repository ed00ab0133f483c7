"""The benchmark: its arithmetic and table, that it measures what it says, and that its record is valid. No test depends on speed."""
import json
import sys
import time

import numpy as np
import pytest
from typer.testing import CliRunner
import typer

from busi_unetpp import benchmark
from busi_unetpp.benchmark import HEAD, as_line, in_fresh_process, measure_reading, measure_start, measure_training, process_seconds, row, stand_in, step_times
from busi_unetpp.dataset import find_root, read_busi
from busi_unetpp.phantom import class_counts, make_phantom


@pytest.fixture(scope='module')
def root(tmp_path_factory): return make_phantom(tmp_path_factory.mktemp('benchmark')/'phantom', n=6, size=(64, 80))

@pytest.fixture(scope='module')
def reading(root): return measure_reading(root, size=64, repeat=1)

def run(*args):
    app = typer.Typer()
    app.command()(benchmark.main)
    return CliRunner().invoke(app, args)


# rows and table

@pytest.mark.parametrize('measured, limit, ratio', [(3., 2, 1.5), (.5, 1, .5), (0., 5, 0.), (3., None, None), (None, 2, None)])
def test_ratio(measured, limit, ratio): assert row('x', measured, 's', limit)['ratio'] == ratio

@pytest.mark.parametrize('r, cells', [
    (row('a', 3., 's', 2), ['a', '3 s', '2 s', '1.5']),
    (row('b', .00123, '%', 5), ['b', '0.0012 %', '5 %', '0.00025']),
    (row('c', 1234.5, 'images/s'), ['c', '1234 images/s', '', '']),
    (row('d', None, 'GB', 2), ['d', 'unknown', '2 GB', '']),
    (HEAD, ['what', 'measured', 'limit', 'ratio'])])
def test_line(r, cells): assert [c.strip() for c in as_line(r).split('|')] == cells

def test_columns_are_aligned():
    lines = [as_line(r) for r in (HEAD, row('x', 1., 's', 2), row('a longer name', 99.9, '%', 5))]
    assert len({tuple(i for i, c in enumerate(l) if c == '|') for l in lines}) == 1


# processes

def test_process_time_is_that_of_the_process():
    assert .3 < process_seconds('import time; time.sleep(.3)', 1)

def test_failing_process_is_told():
    with pytest.raises(Exception, match='exit status 3'): process_seconds('raise SystemExit(3)', 1)

def test_start():
    rows = measure_start(repeat=1)
    assert [r['limit'] for r in rows] == [1, 1] and all(r['measured'] > 0 for r in rows)

def test_watch_sees_the_child_and_not_its_parent(tmp_path):
    ballast = np.ones(60_000_000)                        # 480 MB in this process must not count as the child's
    cores = "len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else 1"
    code = f"import os, time; a = bytearray(300_000_000); open({str(tmp_path/'seen')!r}, 'w').write(str({cores}) + ' ' + os.environ['OMP_NUM_THREADS']); time.sleep(.2)"
    seen = in_fresh_process('watch', [sys.executable, '-c', code], 1)
    assert seen['seconds'] >= .2 and len(ballast)
    assert seen['peak'] is None or .3 < seen['peak'] < .4
    assert (tmp_path/'seen').read_text() == '1 1'


# reading

def test_reading(reading):
    cold, cached = reading
    assert cold['what'] == '6 images of phantom at 64, empty cache' and cached['what'].endswith('cached')
    assert (cold['limit'], cached['limit']) == (15, 1) and cold['measured'] > 0 and cached['measured'] > 0

def test_second_reading_uses_the_cache(root, tmp_path, monkeypatch):
    calls = []
    def here(name, *args, **env):
        monkeypatch.setenv('BUSI_CACHE', env['BUSI_CACHE'])
        calls.append(len(list(benchmark.Path(env['BUSI_CACHE']).glob('*.npz'))))
        return benchmark.read_once(*args)
    monkeypatch.setattr(benchmark, 'in_fresh_process', here)
    measure_reading(root, size=64, repeat=2)
    assert calls == [0, 1, 1]

def test_stand_in_is_a_whole_dataset(tmp_path):
    df = read_busi(stand_in(tmp_path/'data', n=30, different=6, size=(64, 80)))
    assert df.label.value_counts().to_dict() == class_counts(30)
    assert df.mask_paths.map(len).min() == 1 and df.mask_paths.map(len).max() > 1       # the copies keep all their masks


# training

def test_training():
    rows = measure_training(benchmark_recipe(), 'cpu', seconds=.1)
    assert [r['unit'] for r in rows] == ['s', 'images/s', '%', '%']
    assert all(r['measured'] > 0 for r in rows) and [r['limit'] for r in rows] == [None, None, 5, 5]

def test_slow_feeding_is_seen_as_feeding():
    from busi_unetpp.learner import busi_learner
    from busi_unetpp.loaders import pick_device
    recipe = benchmark_recipe()
    learn = busi_learner(benchmark._noise_dls(recipe, pick_device('cpu'), n=40), recipe)
    quick, dl = learn.dls.train.create_batch, learn.dls.train
    dl.create_batch = lambda idxs: (time.sleep(.2), quick(idxs))[1]
    feed, step = step_times(learn, seconds=.5)
    assert len(feed) == len(step) >= 2 and feed.min() >= .2

def test_a_whole_epoch_is_no_feeding():
    "Where the epoch ends before the time, validation is counted as neither feeding nor step."
    from busi_unetpp.learner import busi_learner
    from busi_unetpp.loaders import pick_device
    recipe = benchmark_recipe()
    learn = busi_learner(benchmark._noise_dls(recipe, pick_device('cpu'), n=12), recipe)
    feed, step = step_times(learn, seconds=60)
    assert len(feed) == len(step) == len(learn.dls.train) - 1

def benchmark_recipe():
    from busi_unetpp.learner import get_recipe
    return get_recipe('demo', size=48, model=dict(filters=(4, 6), bottleneck=8))


# the command

def test_command_prints_and_records(root, reading, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, 'measure', lambda data, full: iter([row('x', 3., 's', 2), *reading]))
    done = run('--data', str(root), '--out', str(tmp_path/'new'/'b.json'))
    assert done.exit_code == 0 and len(done.stdout.splitlines()) == 4 and '1.5' in done.stdout       # over the limit, and no failure
    record = json.loads((tmp_path/'new'/'b.json').read_text())
    assert record['rows'][0] == row('x', 3., 's', 2) and record['rows'][1:] == reading
    assert record['machine']['cpu'] and record['machine']['cores'] >= 1 and 'torch' in record['machine']['versions']
    assert str(root) not in json.dumps(record)

def test_measure_is_complete(root, monkeypatch):
    for name in ('start', 'reading', 'demo', 'training'): monkeypatch.setattr(benchmark, f'measure_{name}', lambda *a, name=name: [(name, *map(str, a))])
    assert list(benchmark.measure(root)) == [('start',), ('reading', str(find_root(root))), ('training', 'demo'), ('training', 'paper')]
    assert ('demo',) in benchmark.measure(root, full=True)
    monkeypatch.delenv('BUSI_PATH', raising=False)
    monkeypatch.setattr(benchmark, 'stand_in', lambda dest: dest)
    assert [r[1] for r in benchmark.measure() if r[0] == 'reading'][0].endswith('stand-in')

def test_wrong_folder_is_told(tmp_path):
    done = run('--data', str(tmp_path/'nowhere'))
    assert done.exit_code == 1 and 'nowhere' in done.output and 'Traceback' not in done.output
