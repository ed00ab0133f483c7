"""Shared by all tests: reproducible examples, a cache that is thrown away, a small phantom, and BUSI where it is on the disk."""
import os
import shutil

import pytest
from hypothesis import settings

# Several processes of a test run share the cores, and threads that wait for each other on a busy core are a hundred times slower than one.
os.environ.setdefault('OMP_NUM_THREADS', '1')

settings.register_profile('busi', deadline=None, derandomize=True)  # the same examples everywhere, and no clock in a verdict
settings.load_profile('busi')


def pytest_collection_modifyitems(config, items):
    "What takes hours runs only if it is asked for: `-m fuzz`."
    if 'fuzz' not in (config.option.markexpr or ''): items[:] = [i for i in items if not i.get_closest_marker('fuzz')]


@pytest.fixture(scope='session', autouse=True)
def busi_cache(tmp_path_factory):
    "The decoded images of a test run are kept away from the user's cache; commands started by tests inherit this."
    with pytest.MonkeyPatch.context() as m:
        folder = tmp_path_factory.mktemp('cache')
        m.setenv('BUSI_CACHE', str(folder))
        yield folder

@pytest.fixture(scope='module')
def one_thread():
    "One thread for torch: on tiny networks the threads only wait for each other, and sums keep their order."
    import torch
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)

@pytest.fixture(scope='session')
def small_phantom(tmp_path_factory):
    "A dataset of 16 small simulated images (3 normal, 9 benign, 4 malignant), some with several masks. Not to be written to."
    from busi_unetpp.phantom import make_phantom
    return make_phantom(tmp_path_factory.mktemp('phantom')/'small', n=16, size=(64, 90))

@pytest.fixture(scope='session')
def busi_root():
    "The real BUSI, or a skip that cannot be overlooked."
    if not os.environ.get('BUSI_PATH'): pytest.skip('BUSI IS NOT HERE: set BUSI_PATH to test on the real dataset')
    from busi_unetpp.dataset import find_root
    return find_root()

@pytest.fixture(scope='session')
def busbra_root():
    "The real BUS-BRA, or a skip that cannot be overlooked."
    if not os.environ.get('BUSBRA_PATH'): pytest.skip('BUS-BRA IS NOT HERE: set BUSBRA_PATH to test on the real dataset')
    from busi_unetpp.sources import find_layout
    return find_layout(os.environ['BUSBRA_PATH'], 'BUS-BRA')[1]

@pytest.fixture(scope='session')
def browser():
    "A headless Chromium driven by Playwright, or a skip that cannot be overlooked. Not to be closed by a test."
    sync_api = pytest.importorskip('playwright.sync_api', reason="PLAYWRIGHT IS MISSING, so nothing is tested in a browser: pip install -e '.[dev]'")
    found = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
    if not found: pytest.skip('CHROMIUM IS MISSING, so nothing is tested in a browser: apt-get install chromium')
    with sync_api.sync_playwright() as p:
        b = p.chromium.launch(executable_path=found, args=['--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage'])  # the sandbox refuses root
        yield b
        b.close()
