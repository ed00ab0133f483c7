"The explorer's chapter in a real JupyterLab, and in Voila: run it, move the threshold, see the picture and the number change."
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

CHAPTER = Path(__file__).parents[1]/'nbs'/'48_explore.ipynb'
SLOW = 300_000   # milliseconds: what a busy machine may need to import torch and predict; an idle one needs a tenth


def need(module):
    if not find_spec(module): pytest.skip(f"{module.upper()} IS MISSING, so the explorer is not tested in it: pip install -e '.[dev]'")


def listens(port):
    with socket.socket() as s: return s.connect_ex(('127.0.0.1', port)) == 0


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


@contextmanager
def server(folder, *args):
    "The address of a server that is up; it and its kernels are gone afterwards. User settings are left out of it."
    port, env = free_port(), {**os.environ, 'OMP_NUM_THREADS': '1', **{k: str(folder/k.lower()) for k in ('JUPYTER_CONFIG_DIR', 'JUPYTER_DATA_DIR', 'JUPYTER_RUNTIME_DIR', 'JUPYTERLAB_SETTINGS_DIR', 'JUPYTERLAB_WORKSPACES_DIR')}}
    log = folder/'server.log'
    with open(log, 'w') as f:
        p = subprocess.Popen([sys.executable, '-m', *args, '--no-browser', f'--port={port}'], cwd=folder, env=env, stdout=f, stderr=subprocess.STDOUT, start_new_session=True)
    end = time.monotonic() + SLOW/1000
    try:
        while not listens(port):
            assert p.poll() is None and time.monotonic() < end, log.read_text()[-3000:]
            time.sleep(.3)
        yield f'http://127.0.0.1:{port}'
    finally:
        os.killpg(p.pid, signal.SIGINT)
        try: p.wait(20)
        except subprocess.TimeoutExpired: pass
        try: os.killpg(p.pid, signal.SIGKILL)
        except ProcessLookupError: pass


def settings(folder, plugin, **values):
    path = folder/'jupyterlab_settings_dir'/'@jupyterlab'/plugin
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))


@pytest.fixture
def page(browser):
    context = browser.new_context(viewport=dict(width=1280, height=960))
    page = context.new_page()
    page.set_default_timeout(SLOW)
    yield page
    context.close()


def state(app):
    "What the prediction tab shows: the address of the first large picture and the first Dice."
    dice = app.get_by_text('Dice').first
    return app.locator('img:visible').first.get_attribute('src'), re.search(r'Dice ([\d.]+)', dice.inner_text())[1]


def move_the_threshold(page, app, screenshot):
    "Open the second tab, press the arrow key until both the picture and the number have changed."
    app.get_by_role('tab', name='Prediction').click()
    app.get_by_text('Dice').first.wait_for()
    before = state(app)
    handle = app.locator('.widget-slider:visible, .widget-hslider:visible').first.locator('.noUi-handle')
    handle.focus()
    for _ in range(25): handle.press('ArrowRight')
    end = time.monotonic() + SLOW/1000
    while any(a == b for a, b in zip(before, state(app))):
        assert time.monotonic() < end, (before, state(app))
        page.wait_for_timeout(200)
    page.screenshot(path=screenshot)
    assert screenshot.stat().st_size > 20_000
    assert page.locator('.busi-error').count() == 0


def test_jupyterlab(page, tmp_path):
    need('jupyterlab')
    shutil.copy(CHAPTER, tmp_path)
    settings(tmp_path, 'notebook-extension/tracker.jupyterlab-settings', windowingMode='none')   # cells out of sight are there too
    settings(tmp_path, 'apputils-extension/notification.jupyterlab-settings', fetchNews='false', checkForUpdates=False)
    with server(tmp_path, 'jupyterlab', '--allow-root', '--IdentityProvider.token=', '--ServerApp.password=', f'--ServerApp.root_dir={tmp_path}') as url:
        page.goto(f'{url}/lab/tree/{CHAPTER.name}')
        page.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]').first.wait_for()
        page.get_by_role('menuitem', name='Run', exact=True).click()
        page.get_by_role('menuitem', name='Run All Cells', exact=True).click()
        app = page.locator('.busi-explorer')
        app.get_by_role('tab', name='Dataset').wait_for()
        app.scroll_into_view_if_needed()
        assert app.locator('img:visible').first.get_attribute('src')
        move_the_threshold(page, app, tmp_path/'jupyterlab.png')
        assert page.locator('.jp-RenderedText[data-mime-type="application/vnd.jupyter.error"]').count() == 0


def test_voila(page, tmp_path):
    need('voila')
    shutil.copy(CHAPTER, tmp_path)
    with server(tmp_path, 'voila', CHAPTER.name) as url:
        page.goto(url, wait_until='commit')
        app = page.locator('.busi-explorer')
        app.get_by_role('tab', name='Dataset').wait_for()
        assert page.locator('.jp-Cell:visible').count() == 1, 'as a page of its own, only the explorer is shown of the chapter'
        move_the_threshold(page, app, tmp_path/'voila.png')
