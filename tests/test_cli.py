"The command as a user meets it: in a process of its own, from the first call to the last message."
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

COMMAND = Path(sys.executable).parent/'busi-unetpp'
FILES = {'config.json', 'split.csv', 'history.csv', 'model.safetensors', 'metrics.json', 'per_image.csv', 'figure.png', 'curves.png', 'preview.png', 'report.html',
         'meanings.png', 'calibration.png', 'scores.csv', 'intervals.csv', 'by_class.csv', 'by_size.csv', 'meanings.csv', 'reliability.csv', 'evaluation.json'}


def environment(tmp):
    return {**os.environ, 'BUSI_CACHE': str(tmp/'cache'), 'COLUMNS': '100', 'NO_COLOR': '1', 'TERM': 'dumb'}


def run(*args, cwd, **env):
    done = subprocess.run([COMMAND, *map(str, args)], cwd=cwd, capture_output=True, text=True, env={**environment(cwd), **env}, timeout=900)
    assert 'Traceback' not in done.stderr, done.stderr
    return done


@pytest.fixture(scope='module')
def folder(tmp_path_factory): return tmp_path_factory.mktemp('cli')


@pytest.fixture(scope='module')
def phantom(folder):
    assert run('data', 'phantom', 'phantom', '--n', 30, '--seed', 3, cwd=folder).returncode == 0
    return folder/'phantom'


@pytest.fixture(scope='module')
def demo(folder):
    done = run('demo', cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder/'busi-demo', done.stdout


def test_help_names_every_verb(folder):
    out = run('--help', cwd=folder).stdout + run('data', '--help', cwd=folder).stdout
    for verb in ('demo', 'train', 'evaluate', 'summary', 'verify', 'fetch', 'duplicates', 'phantom'): assert verb in out
    options = run('train', '--help', cwd=folder).stdout
    for o in ('--data', '--recipe', '--out', '--epochs', '--batch-size', '--size', '--seed', '--split', '--fold', '--split-seed', '--allow-leaks', '--device', '--resume'): assert o in options


def test_demo_leaves_a_complete_run_and_prints_table_1(demo):
    out, printed = demo
    assert {p.name for p in out.iterdir()} == FILES
    assert 'Table 1' in printed and '0.9124' in printed and 'predict nothing' in printed
    m = json.loads((out/'metrics.json').read_text())
    assert f"{m['test']['iou']:.4f}" in printed
    assert json.loads((out/'config.json').read_text())['recipe']['name'] == 'demo'


def test_demo_learns_something(demo):
    "Far above 'predict nothing' and above Otsu's threshold on the phantom (about 0.3): the demo shows a network that works."
    m = json.loads((demo[0]/'metrics.json').read_text())
    assert m['test']['tumor_dice'] > .5 and m['test']['iou'] > m['test']['predict_nothing']['iou'] + .1


def test_demo_report_is_self_contained(demo):
    page = (demo[0]/'report.html').read_text()
    assert page.count('data:image/png;base64,') == 5
    assert not re.search(r'(?:src|href)="(?!data:)', page) and '<script' not in page
    for f in ('figure.png', 'curves.png', 'preview.png'):
        with Image.open(demo[0]/f) as im: assert im.width > 400 and np.asarray(im.convert('L')).std() > 5


def test_evaluate_gives_the_recorded_numbers(demo, folder):
    before = (demo[0]/'metrics.json').read_bytes()
    done = run('evaluate', 'busi-demo', cwd=folder)
    assert done.returncode == 0, done.stderr
    assert (demo[0]/'metrics.json').read_bytes() == before


def test_a_finished_run_is_left_alone(demo, folder):
    before = {p.name: p.stat().st_mtime_ns for p in demo[0].iterdir()}
    done = run('demo', '--out', 'busi-demo', cwd=folder)
    assert done.returncode == 1 and 'holds a finished run' in done.stderr
    assert {p.name: p.stat().st_mtime_ns for p in demo[0].iterdir()} == before


def test_an_interrupted_run_resumes_to_the_same_end(phantom, folder):
    args = ['train', '--data', 'phantom', '--recipe', 'demo', '--size', '48', '--epochs', '4', '--out']
    assert run(*args, 'whole', cwd=folder).returncode == 0
    process = subprocess.Popen([COMMAND, *args, 'cut'], cwd=folder, env=environment(folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # tests started in the background ignore Ctrl-C, and so would the child
    while not (folder/'cut'/'last.ckpt').exists() and process.poll() is None: time.sleep(.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130 and '--resume' in err, err
    assert 'holds an unfinished run' in run(*args, 'cut', cwd=folder).stderr
    done = run('train', '--out', 'cut', '--resume', cwd=folder)
    assert done.returncode == 0 and 'Resuming after epoch' in done.stdout, done.stderr
    assert (folder/'cut'/'metrics.json').read_bytes() == (folder/'whole'/'metrics.json').read_bytes()
    a, b = (pd.read_csv(folder/d/'history.csv').drop(columns='seconds') for d in ('cut', 'whole'))
    pd.testing.assert_frame_equal(a, b)
    assert {p.name for p in (folder/'cut').iterdir()} == FILES


def test_a_given_split_is_used(phantom, folder):
    split = pd.read_csv(folder/'whole'/'split.csv')
    split['part'] = np.where(np.arange(len(split)) % 3 == 0, 'test', 'train')
    split.to_csv(folder/'mine.csv', index=False)
    done = run('train', '--data', 'phantom', '--recipe', 'demo', '--size', 48, '--epochs', 1, '--split', 'mine.csv', '--out', 'split', cwd=folder)
    assert done.returncode == 0, done.stderr
    assert pd.read_csv(folder/'split'/'split.csv').part.tolist() == split.part.tolist()


@pytest.mark.parametrize('args, says', [
    (('train', '--data', 'phantom', '--out', 'x', '--recipe', 'papper'), "unknown recipe 'papper'"),
    (('train', '--data', 'phantom', '--out', 'x', '--size', '7'), 'from 48 to 1024'),
    (('train', '--data', 'phantom', '--out', 'x', '--device', 'abacus'), "device 'abacus'"),
    (('train', '--data', 'nowhere', '--out', 'x'), 'nowhere: no such folder'),
    (('train', '--data', 'phantom', '--out', 'phantom/phantom.json/x'), 'could not be written'),
    (('train', '--data', 'phantom', '--out', 'phantom'), 'not empty'),
    (('train', '--out', 'x', '--resume'), 'nothing to resume'),
    (('evaluate', 'phantom'), 'no config.json'),
    (('data', 'summary', 'empty'), 'no dataset of a known layout here'),
    (('data', 'verify', 'empty'), 'no published list to compare these files with'),
    (('data', 'fetch', 'torrent', 'x'), "dataset 'torrent': expected busi or busbra"),
    (('data', 'duplicates', 'empty'), 'no images here'),
    (('data', 'duplicates', 'nowhere'), 'no such folder'),
    (('data', 'phantom', 'p', '--n', '0'), '0'),
])
def test_bad_input_is_one_clear_line(phantom, folder, args, says):
    (folder/'empty').mkdir(exist_ok=True)
    done = run(*args, cwd=folder, BUSI_PATH='')
    assert done.returncode == 1
    assert done.stderr.startswith('Error: ') and says in done.stderr
    assert not (folder/'x').exists()


def test_summary_lists_every_problem(folder):
    assert run('data', 'phantom', 'faulty', '--n', 24, cwd=folder).returncode == 0
    benign = folder/'faulty'/'benign'
    (benign/'benign (1).png').write_bytes(b'')
    (benign/'benign (2).png').write_text('<html>404</html>')
    (benign/'benign (5)_mask.png').unlink()
    image = Image.open(benign/'benign (4).png')
    image.convert('L').save(benign/'benign (4)_mask.png')
    (benign/'benign (6).png').write_bytes((benign/'benign (6).png').read_bytes()[:700])
    done = run('data', 'summary', 'faulty', '--json', cwd=folder)
    problems = {p['file']: p['problem'] for p in json.loads(done.stdout)['problems']}
    assert done.returncode == 1
    assert problems == {'benign/benign (1).png': 'unreadable', 'benign/benign (2).png': 'unreadable', 'benign/benign (5).png': 'image without mask',
        'benign/benign (4)_mask.png': 'not black and white', 'benign/benign (6).png': 'unreadable'}
    text = run('data', 'summary', 'faulty', cwd=folder)
    for f in problems: assert f in text.stdout
    trained = run('train', '--data', 'faulty', '--out', 'y', cwd=folder)
    assert trained.returncode == 1 and 'benign (1).png' in trained.stderr


def test_verify_says_that_the_phantom_is_not_busi(phantom, folder):
    done = run('data', 'verify', 'phantom', cwd=folder)
    assert done.returncode == 1 and 'missing' in done.stdout


def test_duplicates_of_any_folder(phantom, folder):
    (folder/'clinic'/'ward').mkdir(parents=True)
    for i, p in enumerate(sorted((phantom/'benign').glob('benign (?).png'))[:2]): (folder/'clinic'/f'{i}.png').write_bytes(p.read_bytes())
    Image.open(p).convert('L').crop((0, 0, 110, 90)).save(folder/'clinic'/'ward'/'cropped.bmp')
    (folder/'clinic'/'page.png').write_text('<html>')
    done = run('data', 'duplicates', 'clinic', '--out', 'found.csv', '--workers', 2, cwd=folder)
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(folder/'found.csv').set_index('image')
    assert table.group['1.png'] == table.group['ward/cropped.bmp'] != table.group['0.png'] and 'page.png' not in table.index
    assert pd.read_csv(folder/'found_pairs.csv')[['a', 'b']].to_numpy().tolist() == [['1.png', 'ward/cropped.bmp']]
    for text in ('4 images; this takes about', 'comparing pairs: 3 of 3', '3 images in 2 groups by lesion', 'Left out: page.png'): assert text in done.stdout

def test_fetch_takes_a_dataset_and_a_folder(folder, monkeypatch):
    from typer.testing import CliRunner
    from busi_unetpp import fetch
    from busi_unetpp.cli import app
    asked = []
    monkeypatch.setattr(fetch, 'fetch_busi', lambda dest: asked.append(('busi', str(dest))))
    monkeypatch.setattr(fetch, 'fetch_busbra', lambda dest: asked.append(('busbra', str(dest))))
    for args in (['here'], ['busi', 'here'], ['busbra', 'here'], ['BUSBRA', 'here'], ['busbra'], ['busi']):
        assert CliRunner().invoke(app, ['data', 'fetch', *args]).exit_code == 0
    assert asked == [('busi', 'here'), ('busi', 'here'), ('busbra', 'here'), ('busbra', 'here'), ('busbra', 'busbra'), ('busi', 'busi')]


# signals, names and places

def test_sigterm_ends_a_run_as_ctrl_c_does(phantom, folder):
    process = subprocess.Popen([COMMAND, 'train', '--data', 'phantom', '--recipe', 'demo', '--size', '48', '--epochs', '50', '--out', 'term'], cwd=folder, env=environment(folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (folder/'term'/'last.ckpt').exists() and process.poll() is None: time.sleep(.02)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130 and '--resume' in err, err
    assert not [p for p in (folder/'term').iterdir() if p.name.startswith('.')]


def test_two_first_demos_at_once_both_end(folder, tmp_path):
    both = [subprocess.Popen([COMMAND, 'demo'], cwd=tmp_path, env=environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    ends = [p.communicate(timeout=900) for p in both]
    assert [p.returncode for p in both] == [0, 0], ends
    assert {p.name for p in tmp_path.iterdir()} == {'busi-demo', 'busi-demo-2', 'cache'}
    assert all(FILES <= {p.name for p in (tmp_path/d).iterdir()} for d in ('busi-demo', 'busi-demo-2'))


def test_the_demo_s_data_do_without_a_cache(tmp_path, monkeypatch):
    from busi_unetpp import run as run_module
    (tmp_path/'file').write_text('')
    monkeypatch.setenv('BUSI_CACHE', str(tmp_path/'file'/'cache'))
    monkeypatch.setenv('TMPDIR', str(tmp_path))
    monkeypatch.setattr('tempfile.tempdir', None)
    with pytest.warns(UserWarning, match='Set BUSI_CACHE'): assert (run_module._demo_data()/'phantom.json').is_file()


def test_markup_and_control_characters_are_shown(capsys):
    from busi_unetpp.cli import _print_table, _say
    _print_table('[bold]t[/bold]', ('a',), [('[red]x[/red]',), ('\x1b[2J',)])
    _say('\x1b[2Jb', 'c\nd')
    out = capsys.readouterr().out
    assert '[red]x[/red]' in out and '[bold]t[/bold]' in out and '\x1b' not in out and r'\x1b[2Jb c' in out


def test_other_files_are_noted_and_the_status_is_0(folder, phantom):
    (folder/'mixed').mkdir()
    (folder/'mixed'/'a.png').write_bytes((phantom/'benign'/'benign (1).png').read_bytes())
    for name in ('a.heic', '\x1b[2J.mp4', 'b.mp4'): (folder/'mixed'/name).write_bytes(b'x')
    done = run('predict', 'mixed', '--out', 'mixed-out', cwd=folder)
    assert done.returncode == 0 and '3 other files left out: 1 .heic, 2 .mp4.' in done.stdout, done.stderr


def test_a_damaged_summary_is_named(demo, folder):
    import shutil
    shutil.copytree(demo[0], folder/'damaged')
    from busi_unetpp.cli import print_intervals, print_table1
    from busi_unetpp.dataset import BusiError
    for name, show, texts in (('metrics.json', print_table1, ('{}', '[]', '{', '{"train": {}, "test": {}}', '{"train": 5}')), ('intervals.csv', print_intervals, ('', 'metric\n', 'metric,value,low,high\nx,y,1,2\n'))):
        for text in texts:
            (folder/'damaged'/name).write_text(text)
            with pytest.raises(BusiError, match=name): show(folder/'damaged')


def test_a_pasted_path_may_be_in_quotes(tmp_path, phantom):
    from busi_unetpp.explore import open_dataset
    assert len(open_dataset(f' "{phantom}" ')[0]) == len(open_dataset(phantom)[0])
