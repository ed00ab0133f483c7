"The notebooks run, the package is what they export, and they are clean."
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
pytest.importorskip('nbdev', reason="nbdev is missing, so the notebooks are NOT tested: pip install -e '.[dev]'")


def command(*args, cwd=ROOT, **env):
    return subprocess.run([BIN/args[0], *map(str, args[1:])], cwd=cwd, capture_output=True, text=True, env={**os.environ, **env})


@pytest.fixture(scope='module')
def project_copy(tmp_path_factory):
    "A copy of what git tracks or would track, so that the checks change nothing in the project."
    copy = tmp_path_factory.mktemp('copy')/'project'
    files = subprocess.run(['git', 'ls-files', '--cached', '--others', '--exclude-standard'], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    for f in filter(lambda f: (ROOT/f).is_file(), files):
        (copy/f).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT/f, copy/f)
    return copy


def changed(copy):
    return sorted(str(p.relative_to(copy)) for folder in ('nbs', 'busi_unetpp') for p in (copy/folder).rglob('*')
                  if p.is_file() and '__pycache__' not in p.parts and p.read_bytes() != ((ROOT/p.relative_to(copy)).read_bytes() if (ROOT/p.relative_to(copy)).exists() else b''))


@pytest.mark.slow
def test_every_notebook_runs(tmp_path):
    "How long each takes is printed; a busy machine may be slow."
    done = command('nbdev-test', '--n-workers', '2', '--do-print', '--timing', BUSI_CACHE=str(tmp_path))
    print(done.stdout)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count('- Completed') == len([*(ROOT/'nbs').glob('*.ipynb')]), done.stdout


def test_package_is_what_the_notebooks_export(project_copy):
    done = command('nbdev-export', cwd=project_copy)
    assert done.returncode == 0, done.stderr
    assert changed(project_copy) == [], 'run nbdev-export and commit'


def test_notebooks_are_clean(project_copy):
    done = command('nbdev-clean', cwd=project_copy)
    assert done.returncode == 0, done.stderr
    assert changed(project_copy) == [], 'run nbdev-clean and commit'


def test_the_sync_check_notices_an_edited_module(project_copy):
    module = project_copy/'busi_unetpp'/'losses.py'
    text = module.read_text()
    module.write_text(text.replace('1e-6', '1e-5'))
    assert changed(project_copy) == ['busi_unetpp/losses.py']
    module.write_text(text)


def notebooks(): return sorted((ROOT/'nbs').glob('[0-9]*.ipynb'))


@pytest.mark.parametrize('path', notebooks(), ids=lambda p: p.stem)
def test_chapter_has_its_parts(path):
    cells = json.loads(path.read_text())['cells']
    source = [''.join(c['source']) for c in cells]
    head = source[0].splitlines()
    assert head[0].startswith('# ') and head[2].startswith('> ')
    exports = any(c['cell_type'] == 'code' and s.startswith('#| export') for c, s in zip(cells, source))
    assert not exports or any(s.startswith(f"#| default_exp {path.stem.split('_', 1)[1]}") for s in source)
    assert any(c['cell_type'] == 'code' and c['outputs'] for c in cells), 'no saved output: run it and save'
    assert any('test_' in s or 'assert ' in s for s in source), 'no test'
    assert '## What to remember' in '\n'.join(source)
    errors = [o for c in cells if c['cell_type'] == 'code' for o in c['outputs'] if o['output_type'] == 'error']
    assert not errors, 'an output is a traceback'


def imported(text): return set(re.findall(r'^\s*(?:from|import) (?:busi_unetpp)?\.(\w+)', text, flags=re.M))


def test_modules_import_only_earlier_ones():
    assert imported('from .files import write_file\n    from busi_unetpp.run import demo_run\nimport busi_unetpp.cli') == {'files', 'run', 'cli'}
    order = [p.stem.split('_', 1)[1] for p in notebooks()]
    found = {name: imported(p.read_text()) for name in order if (p := ROOT/'busi_unetpp'/f'{name}.py').exists()}
    assert found['run'] >= {'learner', 'report', 'evaluate'}
    later = {name: found.get(name, set()) & set(order[i + 1:]) for i, name in enumerate(order)}
    assert not any(later.values()), later


def text_outputs(path):
    for cell in json.loads(path.read_text())['cells']:
        for o in cell.get('outputs', []):
            yield o.get('name', ''), ''.join(o.get('text', '')) + ''.join(''.join(v) for k, v in o.get('data', {}).items() if k.startswith('text/'))


@pytest.mark.parametrize('path', [*notebooks(), ROOT/'nbs'/'index.ipynb'], ids=lambda p: p.stem)
def test_saved_outputs_are_fit_to_print(path):
    for name, text in text_outputs(path):
        assert name != 'stderr', text
        assert not re.search(r'/root/|/work/|/home/|/tmp/tmp|Warning:', text), text


def test_spelling_is_american():
    words = re.compile(r'\b(grey|tumour|colour|centre|behaviour|(?:normal|optim|initial|recogn)is(?:e|ed|es|er|ing|ation)\b|analys(?:e|ing)\b|licence|neighbour)', flags=re.I)
    allowed = re.compile(r"lightgrey|dimgrey|darkgrey|grey_opening")
    for p in [*(ROOT/'nbs').glob('*.ipynb')]:
        source = '\n'.join(''.join(c['source']) for c in json.loads(p.read_text())['cells'])
        assert not (m := words.search(allowed.sub('', source))), f'{p.name}: {source[max(0, m.start() - 40):m.end() + 40]}'


def test_records_are_what_the_book_prints():
    "README and the benchmark chapter show saved outputs; they must be those of the records that are here now."
    readme = (ROOT/'README.md').read_text(encoding='utf-8')
    runs = [p.parent for p in (ROOT/'nbs'/'records').glob('*/metrics.json')]
    assert runs
    for run in runs:
        test, config = json.loads((run/'metrics.json').read_text())['test'], json.loads((run/'config.json').read_text())
        if config['recipe'].get('split', 'paper') == 'paper': assert ' | '.join(f'{test[k]:.3f}' for k in ('iou', 'accuracy', 'loss', 'tumor_iou', 'tumor_dice')) in readme, run
        assert 'path' not in config['dataset'] and not re.search(r'/root|/work|/home|/tmp', (run/'config.json').read_text())
    from busi_unetpp.compare import read_scores
    scores = pd.concat([read_scores(p) for p in (ROOT/'nbs'/'records'/'judged').glob('fold-*')])
    line = next(l for l in readme.splitlines() if l.startswith('| **version 0.1.0, trained on BUSI alone**'))
    assert f"| {scores[scores.area > 0].dice.mean():.3f} (" in line and f'{len(scores)} images' in line
    together = pd.concat([read_scores(p) for p in (ROOT/'nbs'/'records'/'judged').glob('ensemble-*')])
    assert f"reach a Dice of {together[together.area > 0].dice.mean():.3f} (" in readme and together.image.is_unique
    for p in (ROOT/'nbs'/'records'/'judged').glob('ensemble-*'): assert sorted(read_scores(p).image) == sorted(read_scores(p.with_name(p.name.replace('ensemble', 'fold'))).image)
    unseen = sorted((ROOT/'nbs'/'records'/'unseen').glob('*/unseen.json'))
    assert unseen
    for p in unseen:
        u, rows = json.loads(p.read_text()), pd.read_csv(p.with_name('scores.csv'))
        lesion = rows[rows.area > 0]
        assert u['test']['image_dice_with_tumor'] == pytest.approx(lesion.dice.mean()) and u['test']['missed'] == pytest.approx((lesion.dice < .1).mean())
        assert f"{lesion.dice.mean():.3f} (" in readme and u['commit'] and u['device'] and u['command'].startswith('busi-unetpp evaluate')
    from busi_unetpp.benchmark import as_line
    record = json.loads((ROOT/'nbs'/'records'/'benchmark.json').read_text())
    shown = '\n'.join(text for _, text in text_outputs(ROOT/'nbs'/'51_benchmark.ipynb'))
    for row in record['rows']: assert as_line(row) in shown, row


def test_readme_is_what_the_index_says():
    from nbdev.config import get_config
    from busi_unetpp.site import readme_text
    expected = readme_text(ROOT/'nbs'/'index.ipynb', get_config(ROOT).doc_url)
    assert (ROOT/'README.md').read_text(encoding='utf-8') == expected, 'run python -m busi_unetpp.site --readme and commit'
