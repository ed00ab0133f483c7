"The package's metadata, what is in the wheel, and what importing it costs."
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from configparser import ConfigParser
from email.parser import Parser
from pathlib import Path

import pytest

import busi_unetpp

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope='module')
def settings():
    config = ConfigParser()
    config.read(ROOT/'settings.ini', encoding='utf-8')
    return config['DEFAULT']


def test_the_five_values_stated_twice_agree(settings):
    project = tomllib.loads((ROOT/'pyproject.toml').read_text())['project']
    assert project['name'] == settings['lib_name']
    assert project['description'] == settings['description']
    assert project['requires-python'] == f">={settings['min_python']}"
    assert project['urls'] == dict(Repository=settings['git_url'], Documentation=settings['doc_url'])
    assert set(project) == {'name', 'description', 'requires-python', 'urls', 'dynamic'}, 'everything else belongs in settings.ini'


def test_top_level_is_as_agreed():
    tracked = subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split('\n')
    top = {f.split('/')[0] for f in tracked if f and not f.startswith('.')}
    assert top == {'nbs', 'busi_unetpp', '_quarto.yml', 'settings.ini', 'setup.py', 'tests', 'README.md', 'pyproject.toml', 'LICENSE', 'CHANGELOG.md'}
    assert f'## {busi_unetpp.__version__}' in (ROOT/'CHANGELOG.md').read_text()


def test_no_picture_of_the_data_is_tracked():
    tracked = subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split('\n')
    pictures = [f for f in tracked if re.search(r'\.(png|jpe?g|tiff?|bmp|npz|npy|dcm|gif|webp)$', f, flags=re.I)]
    plots = [f for f in pictures if re.fullmatch(r'nbs/records/(?:seeds/|rivals/|runs/)?[^/]+/curves\.png', f)]  # of numbers
    assert all(f in plots or f.startswith('nbs/records/demo/') or f == 'nbs/home.png' for f in pictures), pictures  # those are simulated


@pytest.fixture(scope='module')
def archives(tmp_path_factory):
    "A source archive, and a wheel built from that archive and nothing else."
    build = pytest.importorskip('build', reason="the package `build` is missing, so the wheel is NOT tested: pip install -e '.[dev]'")
    source, dest = tmp_path_factory.mktemp('source')/'project', tmp_path_factory.mktemp('dist')
    subprocess.run(['git', 'clone', '-q', str(ROOT), str(source)], check=True)
    files = subprocess.run(['git', 'ls-files', '-m', '-o', '--exclude-standard'], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    for f in files:
        if (ROOT/f).is_file():
            (source/f).parent.mkdir(parents=True, exist_ok=True)
            (source/f).write_bytes((ROOT/f).read_bytes())
    done = subprocess.run([sys.executable, '-m', 'build', '-o', str(dest), str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return next(dest.glob('*.tar.gz')), next(dest.glob('*.whl'))


def test_wheel_is_complete(archives, settings):
    sdist, wheel = archives
    with tarfile.open(sdist) as t: assert any(n.endswith('/settings.ini') for n in t.getnames())
    with zipfile.ZipFile(wheel) as z:
        names = z.namelist()
        meta = Parser().parsestr(z.read(next(n for n in names if n.endswith('METADATA'))).decode())
        entries = z.read(next(n for n in names if n.endswith('entry_points.txt'))).decode()
    modules = {p.name for p in (ROOT/'busi_unetpp').glob('*.py')} | {'busi_manifest.csv', 'busbra_manifest.csv', 'busi_groups.csv', 'models/busi.safetensors', 'models/strong.safetensors'}
    assert {n.removeprefix('busi_unetpp/') for n in names if n.startswith('busi_unetpp/')} == modules
    assert meta['Version'] == busi_unetpp.__version__ and meta['Name'] == settings['lib_name']
    assert any(n.endswith('LICENSE') for n in names)
    required = {r.split(';')[0].strip() for r in meta.get_all('Requires-Dist')}
    assert {re.match(r'[\w-]+', r)[0] for r in settings['requirements'].split()} <= {re.match(r'[\w-]+', r)[0] for r in required}
    assert set(meta.get_all('Provides-Extra')) == {'dev', 'kaggle', 'encoder', 'export', 'zoo'}
    assert 'busi-unetpp = busi_unetpp.cli:main' in entries


def imported_by(code):
    out = subprocess.run([sys.executable, '-c', f'import sys; {code}; print(*sys.modules)'], capture_output=True, text=True, check=True)
    return set(out.stdout.split())


@pytest.mark.parametrize('code', ['import busi_unetpp', 'import busi_unetpp.cli'])
def test_light_imports_stay_light(code):
    assert not imported_by(code) & {'torch', 'fastai', 'pandas', 'numpy', 'matplotlib', 'sklearn', 'skimage', 'scipy'}


@pytest.mark.parametrize('module', ['dataset', 'manifest', 'fetch', 'phantom', 'files', 'figures', 'preprocess', 'split'])
def test_data_modules_do_not_need_torch(module):
    assert not imported_by(f'import busi_unetpp.{module}') & {'torch', 'fastai', 'requests', 'pooch'}
