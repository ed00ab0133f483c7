"The documentation site as a reader meets it: every page in a real browser, wide and on a phone, and what can be clicked."
import functools
import http.server
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
from test_site import ROOT, built  # noqa: F401, skips where the tools are missing

PHONE, DESK = dict(width=390, height=844), dict(width=1280, height=900)
PAGES = sorted({p.stem.partition('_')[2] or p.stem for p in (ROOT/'nbs').glob('[!_.]*.ipynb')})

class Quiet(http.server.SimpleHTTPRequestHandler):
    "Serves files and says nothing about it."
    def log_message(self, *args): pass

@contextmanager
def served(folder):
    "The address of `folder` on a server that lives as long as the block."
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try: yield f'http://127.0.0.1:{server.server_port}/'
    finally:
        server.shutdown()
        server.server_close()

@contextmanager
def watched(browser, viewport, **kwargs):
    "A page of a fresh browser window, and the list of complaints that grows while it is used."
    context, complaints = browser.new_context(viewport=viewport, **kwargs), []
    page = context.new_page()
    page.set_default_timeout(20_000)
    page.on('console', lambda m: complaints.append(f'console: {m.text}') if m.type in ('error', 'warning') else None)
    page.on('pageerror', lambda e: complaints.append(f'script: {e}'))
    page.on('requestfailed', lambda r: complaints.append(f'request failed: {r.url}'))
    page.on('response', lambda r: complaints.append(f'{r.status}: {r.url}') if r.status >= 400 else None)
    try: yield page, complaints
    finally: context.close()

LOOK = r'''() => {
  const main = document.querySelector('main') || document.body, prose = main.cloneNode(true), faults = [];
  prose.querySelectorAll('code, pre, math, script, style, table.dataframe').forEach(e => e.remove());
  const raw = prose.textContent.match(/\$\$|\\\(|\\\[|\\begin\{|(?<![\w$])\$\S[^$\n]*\S?\$(?!\w)/);
  if (raw) faults.push('raw formula: ' + raw[0]);
  if (!(document.querySelector('h1') || {}).textContent) faults.push('no heading');
  for (const i of document.images) if (!(i.complete && i.naturalWidth > 0 && i.naturalHeight > 0)) faults.push('no picture: ' + i.src.slice(0, 80));
  for (const i of main.querySelectorAll('.cell-output-display img')) if (getComputedStyle(i).backgroundColor.endsWith(', 0)')) faults.push('a transparent figure');
  for (const m of main.querySelectorAll('math')) {
    const r = m.getBoundingClientRect();
    if (!(r.width > 3 && r.height > 3)) faults.push('formula without size: ' + m.textContent);
  }
  return faults;
}'''
SCROLLS = '''() => {
  const d = document.documentElement, wide = [...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > d.clientWidth + 1);
  return d.scrollWidth > d.clientWidth ? [`scrolls sideways at ${d.clientWidth}: ` + wide.slice(0, 3).map(e => e.tagName + ' ' + e.textContent.slice(0, 40)).join('; ')] : [];
}'''

def faults(page, complaints, url):
    "What is wrong with a page, opened at desktop width and then turned to a phone's."
    page.set_viewport_size(DESK)
    page.goto(url, wait_until='load')
    found = page.evaluate(LOOK) + page.evaluate(SCROLLS)
    page.set_viewport_size(PHONE)
    return found + page.evaluate(SCROLLS) + complaints

@pytest.fixture(scope='module')
def site(built):  # noqa: F811
    with served(built[0]) as url: yield url

@pytest.fixture(scope='module')
def reader(browser, site):
    "One browser window for all pages, and the addresses that they link to."
    with watched(browser, DESK) as (page, complaints): yield page, complaints, {}

@pytest.mark.parametrize('name', PAGES)
def test_page_is_sound(reader, site, name):
    page, complaints, links = reader
    complaints.clear()
    assert faults(page, complaints, f'{site}{name}.html') == []
    here = page.evaluate("[...document.querySelectorAll('a[href]')].map(a => a.href.split('#')[0])")
    links[name] = {u for u in here if u.startswith(site)}

def test_links_lead_to_pages(reader, site):
    page, _, links = reader
    if not links: page.goto(site); links['index'] = set(page.evaluate("[...document.querySelectorAll('a[href]')].map(a => a.href.split('#')[0])"))
    targets = {u for found in links.values() for u in found if u.startswith(site)}
    assert len(targets) > 20
    assert [u for u in sorted(targets) if page.request.get(u).status != 200] == []

def test_search_finds_the_loss_and_opens_it(browser, site):
    with watched(browser, DESK) as (page, complaints):
        page.goto(site)
        page.keyboard.press('/')
        page.keyboard.type('DiceLoss')
        first = page.locator('.search-result').first
        first.wait_for()
        assert 'DiceLoss' in first.inner_text()
        page.keyboard.press('Enter')
        page.wait_for_url('**/losses.html*')
        assert page.locator('#diceloss').first.is_visible()
        page.locator('input[type=search]').fill('xyzzyqwrt')
        page.locator('.search-none').wait_for()
        assert complaints == []

def brightness(page):
    "Mean of the red, green and blue of the page's background, 0-255."
    return page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).reduce((a, b) => a + +b, 0)/3")

def toggle(page, dark):
    "Clicks the switch of light and dark and waits until the page has turned."
    page.locator('.quarto-color-scheme-toggle').first.click()
    page.wait_for_function("dark => document.documentElement.classList.contains('quarto-dark') === dark", arg=dark)

@pytest.mark.parametrize('size', [DESK, PHONE], ids=['desk', 'phone'])
def test_dark_stays_dark(browser, site, size):
    with watched(browser, size, color_scheme='light') as (page, complaints):
        page.goto(site)
        assert brightness(page) > 200
        toggle(page, True)
        assert brightness(page) < 60
        page.goto(f'{site}losses.html')
        assert brightness(page) < 60, 'the choice was forgotten'
        text = page.evaluate("getComputedStyle(document.querySelector('main p')).color.match(/\\d+/g).slice(0, 3).reduce((a, b) => a + +b, 0)/3")
        assert text > 150
        toggle(page, False)
        assert brightness(page) > 200
        assert complaints == []

def test_first_page_greets_with_its_picture(browser, site):
    with watched(browser, PHONE) as (page, _):
        page.goto(site)
        page.wait_for_function("document.querySelector('main img').naturalWidth > 1000")
        assert page.locator('main img').first.bounding_box()['width'] > 300
        assert page.locator('link[rel=icon]').get_attribute('href').endswith('.svg')

def test_phone_has_chapters_and_search_behind_buttons(browser, site):
    with watched(browser, PHONE) as (page, complaints):
        page.goto(site)
        page.locator('.quarto-btn-toggle').first.click()
        page.locator('#quarto-sidebar a[href$="losses.html"]').click()
        page.wait_for_url('**/losses.html')
        page.locator('.navbar-toggler').click()
        page.locator('input[type=search]').fill('Dice')
        result = page.locator('.search-result').first
        result.wait_for()
        box = result.bounding_box()
        assert 0 <= box['x'] and box['x'] + box['width'] <= PHONE['width']
        assert complaints == []

def test_sidebar_shows_where_one_is(browser, site):
    with watched(browser, DESK) as (page, _):
        page.goto(f'{site}site.html')
        box = page.locator('#quarto-sidebar .sidebar-link.active').bounding_box()
        assert 0 < box['y'] < DESK['height'] - 20

def test_look_finds_planted_faults(browser, tmp_path):
    (tmp_path/'good.html').write_text('<link rel="icon" href="data:,"><h1>T</h1><p>It costs $5.</p><math><mi>x</mi><mo>=</mo><mn>1</mn></math>')
    (tmp_path/'bad.html').write_text('''<link rel="icon" href="data:,"><h1></h1><p>area $s^2$</p><img src="gone.png"><math></math>
        <pre style="width:800px">x</pre><script>console.error('boom'); undefinedFunction()</script>''')
    with served(tmp_path) as url, watched(browser, DESK) as (page, complaints):
        assert faults(page, complaints, f'{url}good.html') == []
        found = '\n'.join(faults(page, complaints, f'{url}bad.html'))
        for what in ('raw formula: $s^2$', 'no heading', 'no picture', 'formula without size', 'sideways at 390', 'console: boom', 'undefinedFunction', '404'): assert what in found
