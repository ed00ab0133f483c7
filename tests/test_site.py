"The documentation site, built from the real notebooks without Quarto, and the check that reads it."
import ast
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

for module in ('nbdev', 'smalldocs', 'math_core', 'bs4'):
    pytest.importorskip(module, reason=f"{module} is missing, so the site is NOT tested: pip install -e '.[dev]'")

import yaml
from bs4 import BeautifulSoup

from busi_unetpp import site as st
from busi_unetpp._modidx import d as modidx
from busi_unetpp.dataset import BusiError

ROOT = Path(__file__).parents[1]
GENERATED = [ROOT/o for o in ('_proc', '_docs', 'nbs/_proc', 'nbs/nbdev.yml', 'nbs/sidebar.yml')]

def run(*args):
    "Returns the finished command, started in the project's folder."
    return subprocess.run([sys.executable, '-m', 'busi_unetpp.site', *map(str, args)], cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, 'PYTHONDONTWRITEBYTECODE': '1'})

@cache
def build_once(dest):
    "The site of this project and the command that built it; a second file of tests gets the same."
    before = [p.exists() for p in GENERATED]
    done = run('--dest', dest)
    assert [p.exists() for p in GENERATED] == before, 'the build left files in the project'
    assert (dest/'search.json').exists(), done.stderr
    return dest, done

@pytest.fixture(scope='session')
def built(tmp_path_factory): return build_once(tmp_path_factory.getbasetemp()/'docs'/'site')

def test_build_finds_nothing_wrong(built):
    dest, done = built
    found = st.check_site(dest)
    assert found.empty, found.to_string()
    assert done.returncode == 0, done.stderr
    assert f"{len([*dest.glob('*.html')])} pages" in done.stdout

def test_every_notebook_has_a_page_and_a_markdown_copy(built):
    from nbdev.config import nbpath2html
    pages = {nbpath2html(p).name for p in (ROOT/'nbs').glob('[!_.]*.ipynb')}
    assert len(pages) > 1
    assert {p.name for p in built[0].glob('*.html')} == pages
    assert {p.name for p in built[0].glob('*.html.md')} == {f'{p}.md' for p in pages}

@pytest.mark.parametrize('module', sorted(modidx['syms']))
def test_page_documents_what_its_module_exports(built, module):
    source = (ROOT/module.replace('.', '/')).with_suffix('.py').read_text(encoding='utf-8')
    exported = set(ast.literal_eval(re.search(r'^__all__ = (\[.*?\])', source, flags=re.M | re.S)[1]))
    places = {name.removeprefix(f'{module}.'): where for name, (where, _) in modidx['syms'][module].items()}
    assert exported & places.keys()
    page = {where.split('#')[0] for where in places.values()}.pop()
    soup = BeautifulSoup((built[0]/page).read_text(encoding='utf-8'), 'html.parser')
    shown = {h.get_text(strip=True) for h in soup.find_all('h3')}
    for name in exported & places.keys():
        assert name in shown
        assert soup.find(id=places[name].split('#')[1]), f'links to {name} lead nowhere'

def test_names_in_backticks_link_within_the_site(built):
    soup = BeautifulSoup((built[0]/'site.html').read_text(encoding='utf-8'), 'html.parser')
    links = {a['href']: a.get_text() for a in soup.find('main').find_all('a', href=True)}
    assert links.get('site.html#check_site', links.get('#check_site')) == 'check_site'

def test_styles_come_from_no_other_host(built):  # tags are check_site's
    styles = [p for p in built[0].rglob('*.css')]
    assert any('cosmo' in p.name for p in styles)
    for p in styles: assert not re.search(r'(?:@import|url\()\s*["\']?(?:url\()?["\']?(?:https?:)?//', p.read_text(encoding='utf-8')), p.name

def test_formulas_are_mathml(built):
    page = (built[0]/'site.html').read_text(encoding='utf-8')
    assert '<mfrac>' in page
    for p in built[0].glob('*.html'): assert r'<span class="math inline">\(' not in p.read_text(encoding='utf-8')

def test_llms_txt_lists_files_that_exist(built):
    text = (built[0]/'llms.txt').read_text(encoding='utf-8')
    listed = re.findall(r'\]\(https://[^)]*/([^/)]+)\)', text)
    assert set(listed) == {p.name for p in built[0].glob('*.html.md')}

def test_sidebar_names_notebooks_once():
    def flat(contents): return [x for o in contents for x in (flat(o['contents']) if isinstance(o, dict) else [o])]
    listed = flat(yaml.safe_load((ROOT/'_quarto.yml').read_text(encoding='utf-8'))['website']['sidebar']['contents'])
    assert len(set(listed)) == len(listed)
    assert sorted({p.name for p in (ROOT/'nbs').glob('*.ipynb')} - set(listed)) == []
    assert sorted(set(listed) - {p.name for p in (ROOT/'nbs').glob('*.ipynb')}) == []

@pytest.mark.parametrize('body, problem', [
    ('<a href="gone.html">x</a>', 'broken link'),
    ('<a href="sub/">x</a>', 'broken link'),
    ('<a href="#gone">x</a>', 'no such anchor'),
    ('<a href="other.html#gone">x</a>', 'no such anchor'),
    ('<img src="gone.png">', 'missing image'),
    ('<img src="https://example.org/a.png">', 'fetched from another host'),
    ('<script src="//cdn.example.org/a.js"></script>', 'fetched from another host'),
    ('<p>the area $s^2$ grows</p>', 'raw formula'),
    (r'<p>the area \(s^2\) grows</p>', 'raw formula'),
    ('<p>$$\nx\n$$</p>', 'raw formula'),
    ('<p>as @fig-loss shows</p>', 'raw cross-reference'),
    ('<p>::: {.callout-note}</p>', 'raw block')])
def test_check_finds_a_planted_fault(tmp_path, body, problem):
    page = '<html><head><title>t</title></head><body><h1 id="top">T</h1>{}</body></html>'
    (tmp_path/'other.html').write_text(page.format('<a href="index.html#top">x</a>'))
    index = tmp_path/'index.html'
    index.write_text(page.format('<a href="other.html">x</a> <p>$5 or $10, <code>$x$ @fig-a</code></p>'))
    assert st.check_site(tmp_path).empty
    index.write_text(page.format(f'<a href="other.html">x</a> {body}'))
    assert st.check_site(tmp_path).problem.tolist() == [problem]

def test_check_finds_missing_titles_and_orphans(tmp_path):
    (tmp_path/'index.html').write_text('<html><head><title>t</title></head><body><h1>T</h1></body></html>')
    (tmp_path/'orphan.html').write_text('<html><body><a href="orphan.html">me</a></body></html>')
    assert set(st.check_site(tmp_path).problem) == {'no title', 'no page links to it'}

def test_command_explains_itself(tmp_path, monkeypatch):
    done = run('--project', tmp_path, '--dest', tmp_path/'site')
    assert done.returncode and 'pyproject.toml is missing' in done.stderr and 'Traceback' not in done.stderr
    monkeypatch.setattr(st, 'find_spec', lambda m: None)
    with pytest.raises(BusiError, match=r"pip install -e '\.\[dev\]'"): st.build_site(ROOT, tmp_path/'site')

@pytest.mark.parametrize('name', ['test', 'deploy'])
def test_workflows_parse(name):
    flow = yaml.safe_load((ROOT/f'.github/workflows/{name}.yml').read_text(encoding='utf-8'))
    assert flow['jobs'] and flow[True]  # YAML reads the key `on` as true
    for job in flow['jobs'].values(): assert all('uses' in s or 'run' in s for s in job['steps'])
