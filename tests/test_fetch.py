"""Fetching: a real HTTP server with faults on this computer, hostile archives, archives put there by hand, and no network. No outside address is contacted."""
import errno
import shutil
import socket
import stat
import subprocess
import sys
import threading
import zipfile
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import requests
from PIL import Image

from busi_unetpp import fetch
from busi_unetpp.dataset import LABELS, BusiError
from busi_unetpp.fetch import (AUTHORS_PAGE, AUTHORS_URL, BUSBRA_PAGE, BUSBRA_URL, FOLDER, KAGGLE_HANDLE, KAGGLE_PAGE, SourceError, download, fetch_busbra,
                               fetch_busi, safe_unzip)
from busi_unetpp.manifest import is_whole, make_busbra_manifest, make_manifest, verify


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args): pass
    def do_GET(self):
        s, want = self.server, self.headers.get('Range')
        s.asked.append((want, self.headers.get('If-Range')))
        if s.status: return self.send_error(s.status.pop(0))
        fresh = s.blind or self.headers.get('If-Range') in (None, s.etag)
        start = int(want[6:-1]) if want and s.ranges and fresh else 0
        if start >= len(s.data): return self.send_error(416)
        body = s.data[start:]
        self.send_response(206 if start else 200)
        if start: self.send_header('Content-Range', f'bytes {start}-{len(s.data) - 1}/{len(s.data)}')
        if s.length: self.send_header('Content-Length', str(len(body)))
        if s.etag: self.send_header('ETag', s.etag)
        self.send_header('Content-Type', s.kind)
        self.end_headers()
        self.wfile.write(body[:s.drops.pop(0)] if s.drops else body)

@pytest.fixture
def serve(monkeypatch):
    "A function that starts a server; see the names of its attributes for its faults."
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    running = []
    def start(data, drops=(), etag='"v1"', kind='application/zip', ranges=True, length=True, blind=False, status=()):
        s = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        vars(s).update(data=data, drops=list(drops), etag=etag, kind=kind, ranges=ranges, length=length, blind=blind, status=list(status), asked=[])
        s.url = f'http://127.0.0.1:{s.server_port}/Dataset_BUSI.zip'
        threading.Thread(target=s.serve_forever, kwargs=dict(poll_interval=.01), daemon=True).start()
        running.append(s)
        return s
    yield start
    for s in running:
        s.shutdown()
        s.server_close()

def make_zip(path, entries, how=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, 'w', how) as z:
        for name, content in entries.items(): z.writestr(name, content)
    return path

@pytest.fixture(scope='module')
def busi(tmp_path_factory):
    "A tiny dataset: its folder, its manifest, its zip as the authors pack it, and its files."
    tmp = tmp_path_factory.mktemp('busi')
    rng = np.random.default_rng(0)
    for label in LABELS:
        (tmp/FOLDER/label).mkdir(parents=True)
        for name in (f'{label} (1).png', f'{label} (1)_mask.png'):
            Image.fromarray(rng.integers(0, 256, (120, 130), dtype=np.uint8)).save(tmp/FOLDER/label/name)
    files = {p.relative_to(tmp).as_posix(): p.read_bytes() for p in sorted(tmp.rglob('*.png'))}
    return SimpleNamespace(root=tmp/FOLDER, manifest=make_manifest(tmp/FOLDER), zip=make_zip(tmp/'busi.zip', files), files=files)

@pytest.fixture
def no_kaggle(monkeypatch): monkeypatch.setitem(sys.modules, 'kagglehub', None)

@pytest.fixture
def dead_url():
    "An address on this computer where nobody listens."
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    return f'http://127.0.0.1:{port}/Dataset_BUSI.zip'

@pytest.fixture
def no_network(monkeypatch):
    "Any attempt to open a connection fails the test."
    def refuse(*args, **kwargs): raise AssertionError('the network was used')
    monkeypatch.setattr(socket, 'create_connection', refuse)
    monkeypatch.setattr(socket.socket, 'connect', refuse)

FAST = dict(wait=.001)
DATA = b'PK' + np.random.default_rng(1).bytes(200_000)

def names(folder): return sorted(p.name for p in Path(folder).iterdir())


# --- downloading

def test_plain_download(serve, tmp_path):
    s = serve(DATA)
    download(s.url, tmp_path/'x.zip')
    assert (tmp_path/'x.zip').read_bytes() == DATA and names(tmp_path) == ['x.zip'] and s.asked == [(None, None)]

def test_resume_within_a_run_sends_range(serve, tmp_path):
    s = serve(DATA, drops=[70_000, 70_000])
    download(s.url, tmp_path/'x.zip', **FAST)
    assert (tmp_path/'x.zip').read_bytes() == DATA
    assert s.asked == [(None, None), ('bytes=65536-', '"v1"'), ('bytes=131072-', '"v1"')]

def test_resume_in_a_later_run(serve, tmp_path):
    s = serve(DATA, drops=[70_000])
    with pytest.raises(SourceError, match=r'broke off.*0\.1 MB are kept in .*x\.zip\.part'): download(s.url, tmp_path/'x.zip', tries=1)
    assert names(tmp_path) == ['x.zip.part', 'x.zip.part.tag'] and (tmp_path/'x.zip.part').read_bytes() == DATA[:65536]
    download(s.url, tmp_path/'x.zip', tries=1)
    assert (tmp_path/'x.zip').read_bytes() == DATA and s.asked[1] == ('bytes=65536-', '"v1"') and names(tmp_path) == ['x.zip']

def test_server_without_ranges_starts_over(serve, tmp_path):
    s = serve(DATA, drops=[70_000], ranges=False)
    download(s.url, tmp_path/'x.zip', **FAST)
    assert (tmp_path/'x.zip').read_bytes() == DATA and s.asked[1][0] == 'bytes=65536-'

@pytest.mark.parametrize('etag', [None, 'W/"weak"'])
def test_without_a_strong_tag_nothing_is_resumed(serve, tmp_path, etag):
    s = serve(DATA, drops=[70_000], etag=etag)
    download(s.url, tmp_path/'x.zip', **FAST)
    assert (tmp_path/'x.zip').read_bytes() == DATA and s.asked == [(None, None), (None, None)]
    s.drops = [70_000]
    with pytest.raises(SourceError) as e: download(s.url, tmp_path/'y.zip', tries=1)
    assert 'are kept' not in str(e.value) and names(tmp_path) == ['x.zip']

@pytest.mark.parametrize('blind', [False, True], ids=['If-Range heeded', 'If-Range ignored'])
def test_server_changed_meanwhile(serve, tmp_path, blind):
    s = serve(DATA, drops=[70_000])
    with pytest.raises(SourceError): download(s.url, tmp_path/'x.zip', tries=1)
    s.data, s.etag, s.blind = b'PK' + DATA[::-1], '"v2"', blind
    download(s.url, tmp_path/'x.zip', **FAST)
    assert (tmp_path/'x.zip').read_bytes() == s.data

def test_part_longer_than_the_file_starts_over(serve, tmp_path):
    (tmp_path/'x.zip.part').write_bytes(b'PK' + bytes(300_000))
    (tmp_path/'x.zip.part.tag').write_text('"v1"')
    s = serve(DATA)
    download(s.url, tmp_path/'x.zip', **FAST)
    assert (tmp_path/'x.zip').read_bytes() == DATA and [a[0] for a in s.asked] == ['bytes=300002-', None]

def test_no_length_given(serve, tmp_path):
    download(serve(DATA, length=False).url, tmp_path/'x.zip')
    assert (tmp_path/'x.zip').read_bytes() == DATA

def test_busy_server_is_asked_again_and_a_refusal_is_not(serve, tmp_path):
    s = serve(DATA, status=[503, 429])
    download(s.url, tmp_path/'x.zip', **FAST)
    assert (tmp_path/'x.zip').read_bytes() == DATA and len(s.asked) == 3
    s = serve(DATA, status=[404, 404])
    with pytest.raises(SourceError, match='404 Not Found'): download(s.url, tmp_path/'y.zip', **FAST)
    assert len(s.asked) == 1

def test_a_web_page_does_not_wipe_out_what_is_here(serve, tmp_path):
    s = serve(DATA, drops=[70_000])
    with pytest.raises(SourceError): download(s.url, tmp_path/'x.zip', tries=1)
    s.data, s.kind, s.etag = b'<html>log in</html>', 'text/html; charset=utf-8', None
    with pytest.raises(SourceError, match='web page'): download(s.url, tmp_path/'x.zip', **FAST)
    s.kind = 'application/octet-stream'
    with pytest.raises(SourceError, match='not a zip'): download(s.url, tmp_path/'x.zip', **FAST)
    assert (tmp_path/'x.zip.part').read_bytes() == DATA[:65536]
    s.data, s.etag = DATA, '"v1"'
    download(s.url, tmp_path/'x.zip')
    assert (tmp_path/'x.zip').read_bytes() == DATA and s.asked[-1][0] == 'bytes=65536-'

def test_a_short_answer_is_noticed_whatever_the_http_library_does(tmp_path):
    short = SimpleNamespace(status_code=200, headers={'Content-Length': '100', 'ETag': '"v1"'}, iter_content=lambda n: iter([b'PK', b'x'*10]))
    with pytest.raises(requests.ConnectionError, match='broke off'): fetch._receive(short, tmp_path/'x.part', False)
    assert (tmp_path/'x.part').stat().st_size == 12

def test_pauses_double(serve, tmp_path, monkeypatch, dead_url):
    pauses = []
    monkeypatch.setattr(fetch.time, 'sleep', pauses.append)
    with pytest.raises(SourceError, match='4 tries'): download(dead_url, tmp_path/'x.zip')
    assert pauses == [1, 2, 4] and names(tmp_path) == []

def test_a_silent_server_times_out(tmp_path):
    with socket.create_server(('127.0.0.1', 0)) as s:
        url = f'http://127.0.0.1:{s.getsockname()[1]}/x.zip'
        with pytest.raises(SourceError, match='timed out'): download(url, tmp_path/'x.zip', tries=2, wait=.001, timeout=(1, .1))


# --- unpacking

GOOD = {'top/benign/a.png': b'one', 'top/normal/b.png': b'two'}

def test_unzip_round_trip(tmp_path):
    safe_unzip(make_zip(tmp_path/'z.zip', GOOD), tmp_path/'out')
    assert {p.relative_to(tmp_path/'out').as_posix(): p.read_bytes() for p in (tmp_path/'out').rglob('*.png')} == GOOD
    with pytest.raises(BusiError, match='already there'): safe_unzip(tmp_path/'z.zip', tmp_path/'out')

def refused(tmp_path, match, **limits):
    "`z.zip` is refused, and nothing is written in the folder or above it."
    box = tmp_path/'box'
    box.mkdir(exist_ok=True)
    before = sorted(tmp_path.rglob('*'))
    with pytest.raises(SourceError, match=match) as e: safe_unzip(tmp_path/'z.zip', box/'out', **limits)
    assert sorted(tmp_path.rglob('*')) == before and 'z.zip' in str(e.value)

@pytest.mark.parametrize('name', ['../up.png', 'a/../../up.png', '/abs.png', '//host/share/x', 'C:/x.png', 'c:x.png', '..\\up.png', 'a\\..\\..\\x', '\\x.png', '..'])
def test_names_that_lead_elsewhere(tmp_path, name):
    make_zip(tmp_path/'z.zip', {**GOOD, name: b'bad'})
    refused(tmp_path, 'outside the folder')

@pytest.mark.parametrize('kind', [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO])
def test_links_and_devices(tmp_path, kind):
    entry = zipfile.ZipInfo('top/benign')
    entry.external_attr = (kind | 0o777) << 16
    with zipfile.ZipFile(tmp_path/'z.zip', 'w') as z:
        z.writestr(entry, '/etc')
        z.writestr('top/benign/x.png', b'1')
    refused(tmp_path, 'link or a device')

def test_bombs(tmp_path):
    make_zip(tmp_path/'z.zip', dict(zeros=bytes(5_000_000)))
    refused(tmp_path, 'unpack from 0.0 MB to 5.0 MB')
    make_zip(tmp_path/'z.zip', dict(noise=DATA))
    refused(tmp_path, 'to 0.2 MB', max_bytes=100_000)

def test_a_bomb_that_lies_about_its_size(tmp_path):
    data = bytearray(make_zip(tmp_path/'z.zip', dict(zeros=bytes(5_000_000), noise=DATA)).read_bytes())
    i = data.index((5_000_000).to_bytes(4, 'little'), data.index(b'PK\x01\x02'))
    data[i:i + 4] = (1000).to_bytes(4, 'little')
    (tmp_path/'z.zip').write_bytes(data)
    refused(tmp_path, 'not a complete zip')

def test_overlapping_entries(tmp_path):
    "Many entries of the directory share one content: each ratio is fair, the sum is not."
    make_zip(tmp_path/'z.zip', dict(x=b'x'*30_000))
    with zipfile.ZipFile(tmp_path/'z.zip', 'a') as z:
        for i in range(500):
            e = zipfile.ZipInfo(f'x{i}')
            e.header_offset, e.file_size, e.compress_size, e.CRC, e.compress_type = 0, 30_000, z.filelist[0].compress_size, z.filelist[0].CRC, zipfile.ZIP_DEFLATED
            z.filelist.append(e)
            z.NameToInfo[e.filename] = e
        z._didModify = True
    refused(tmp_path, 'would unpack')

@pytest.mark.parametrize('damage', ['cut', 'flipped', 'page', 'empty', 'locked'])
def test_damaged_archives(tmp_path, damage):
    data = bytearray(make_zip(tmp_path/'z.zip', GOOD, zipfile.ZIP_STORED).read_bytes())
    if damage == 'cut': del data[-40:]
    if damage == 'flipped': data[data.index(b'one')] ^= 1
    if damage == 'page': data = b'<html>404</html>'
    if damage == 'empty': data = b''
    if damage == 'locked': data[data.index(b'PK\x01\x02') + 8] |= 1    # the flag of an encrypted entry
    (tmp_path/'z.zip').write_bytes(data)
    refused(tmp_path, 'not a complete zip')


# --- the whole

def test_fetch_downloads_resumes_unpacks_verifies(serve, tmp_path, busi, capsys):
    s = serve(busi.zip.read_bytes(), drops=[40_000])
    root = fetch_busi(tmp_path/'a'/'data', url=s.url, manifest=busi.manifest, **FAST)
    assert root == tmp_path/'a'/'data'/FOLDER and is_whole(verify(root, busi.manifest)) and names(root.parent) == [FOLDER]
    assert [a[0] for a in s.asked] == [None, 'bytes=32768-']
    out = capsys.readouterr().out
    assert 'all 6 files agree' in out and '10.1016/j.dib.2019.104863' in out

def test_what_is_here_is_not_downloaded(tmp_path, busi, no_network):
    assert fetch_busi(busi.root, manifest=busi.manifest) == busi.root
    assert fetch_busi(busi.root.parent, manifest=busi.manifest) == busi.root

def test_keep_zip(serve, tmp_path, busi):
    fetch_busi(tmp_path, url=serve(busi.zip.read_bytes()).url, manifest=busi.manifest, keep_zip=True)
    assert names(tmp_path) == ['Dataset_BUSI.zip', FOLDER] and (tmp_path/'Dataset_BUSI.zip').read_bytes() == busi.zip.read_bytes()

@pytest.mark.parametrize('name', ['Dataset_BUSI.zip', 'archive.zip', 'Dataset_BUSI (1).zip'])
def test_zip_by_hand_needs_no_network(tmp_path, busi, name, no_network):
    shutil.copy(busi.zip, tmp_path/name)
    assert is_whole(verify(fetch_busi(tmp_path, manifest=busi.manifest), busi.manifest))
    assert names(tmp_path) == sorted([FOLDER, name])

def test_zip_by_hand_without_top_folder(tmp_path, busi, no_network):
    make_zip(tmp_path/'archive.zip', {k.partition('/')[2]: v for k, v in busi.files.items()})
    assert fetch_busi(tmp_path, manifest=busi.manifest) == tmp_path/FOLDER

@pytest.mark.parametrize('content, match', [(lambda b: b.zip.read_bytes()[:5000], 'not a complete zip.*Download it again'), (lambda b: b'<html>', 'not a complete zip'),
                                            (None, 'not BUSI.*Download it again')], ids=['cut', 'page', 'other'])
def test_bad_zip_by_hand(tmp_path, busi, content, match, no_network):
    if content: (tmp_path/'archive.zip').write_bytes(content(busi))
    else: make_zip(tmp_path/'archive.zip', GOOD)
    with pytest.raises(BusiError, match=match): fetch_busi(tmp_path, manifest=busi.manifest)
    assert names(tmp_path) == ['archive.zip']

def test_another_dataset_is_told(tmp_path, busi, no_network):
    make_zip(tmp_path/'archive.zip', {**busi.files, f'{FOLDER}/benign/benign (1).png': busi.files[f'{FOLDER}/normal/normal (1).png']})
    for _ in range(2):      # unpacked, then found
        with pytest.raises(BusiError, match=r'altered    benign/benign \(1\)\.png(.|\n)*move them away'): fetch_busi(tmp_path, manifest=busi.manifest)

def test_something_else_in_its_place(tmp_path, no_network):
    (tmp_path/FOLDER).mkdir()
    with pytest.raises(BusiError, match='Move it away'): fetch_busi(tmp_path)

def fake_kaggle(monkeypatch, answer):
    asked = []
    def dataset_download(handle:str, path=None, *, force_download=False, output_dir=None)->str:  # kagglehub 1.0's signature
        asked.append(handle)
        if isinstance(answer, Exception): raise answer
        return str(answer)
    monkeypatch.setitem(sys.modules, 'kagglehub', SimpleNamespace(dataset_download=dataset_download))
    return asked

def test_falls_back_to_kaggle_after_the_authors(serve, tmp_path, busi, monkeypatch, capsys):
    asked = fake_kaggle(monkeypatch, busi.root.parent)
    s = serve(b'<html>', kind='text/html')
    root = fetch_busi(tmp_path, url=s.url, manifest=busi.manifest)
    assert asked == [KAGGLE_HANDLE] and len(s.asked) == 1 and is_whole(verify(root, busi.manifest)) and busi.root.is_dir()
    assert capsys.readouterr().out.index('(authors)') < 200 and names(tmp_path) == [FOLDER]

def test_a_source_can_be_chosen(serve, tmp_path, busi, monkeypatch):
    asked = fake_kaggle(monkeypatch, busi.root.parent)
    s = serve(busi.zip.read_bytes())
    fetch_busi(tmp_path/'k', source='kaggle', url=s.url, manifest=busi.manifest)
    assert asked and not s.asked
    fetch_busi(tmp_path/'a', source='authors', url=s.url, manifest=busi.manifest)
    assert len(asked) == len(s.asked) == 1
    with pytest.raises(BusiError, match='auto, authors or kaggle'): fetch_busi(tmp_path/'b', source='torrent')

def test_a_damaged_zip_from_the_authors_is_dropped(serve, tmp_path, busi, no_kaggle):
    with pytest.raises(BusiError, match='not a complete zip'): fetch_busi(tmp_path, url=serve(busi.zip.read_bytes()[:-40]).url, manifest=busi.manifest)
    assert names(tmp_path) == []

def test_without_a_network_one_message_says_all(tmp_path, dead_url, no_kaggle):
    dest = tmp_path/'my data'
    with pytest.raises(BusiError) as e: fetch_busi(dest, url=dead_url, tries=2, **FAST)
    text = str(e.value)
    for part in ('authors: ', 'refused (2 tries)', 'kaggle: kagglehub is not installed', 'pip install "busi-unetpp[kaggle]"', AUTHORS_PAGE, AUTHORS_URL, KAGGLE_PAGE,
                 'archive.zip', f'into {dest}', f"busi-unetpp data fetch busi '{dest}'"): assert part in text, part
    assert not isinstance(e.value, SourceError) and names(dest) == []

def test_name_resolution_failure_is_said_in_words(tmp_path, monkeypatch):
    fake_kaggle(monkeypatch, ConnectionError('no way\nmore'))
    def fail(*args, **kwargs): raise socket.gaierror(-2, 'Name or service not known')
    monkeypatch.setattr(socket, 'getaddrinfo', fail)
    with pytest.raises(BusiError) as e: fetch_busi(tmp_path, tries=1)
    assert "authors: Failed to resolve 'scholar.cu.edu.eg'" in str(e.value) and 'kaggle: kagglehub failed: no way\n' in str(e.value)

def test_partial_download_is_kept_and_said(serve, tmp_path, busi, no_kaggle):
    s = serve(busi.zip.read_bytes(), drops=[40_000])
    with pytest.raises(BusiError, match='are kept in .*Dataset_BUSI.zip.part, and the next run goes on'): fetch_busi(tmp_path, url=s.url, manifest=busi.manifest, tries=1)
    assert names(tmp_path) == ['Dataset_BUSI.zip.part', 'Dataset_BUSI.zip.part.tag']
    fetch_busi(tmp_path, url=s.url, manifest=busi.manifest)
    assert names(tmp_path) == [FOLDER] and s.asked[-1][0] == 'bytes=32768-'

def test_unwritable_destination_is_said_before_any_download(serve, tmp_path, monkeypatch):
    s = serve(DATA)
    (tmp_path/'file').touch()
    with pytest.raises(BusiError, match='cannot be written'): fetch_busi(tmp_path/'file'/'x', url=s.url)
    def refuse(*args, **kwargs): raise PermissionError(errno.EACCES, 'Permission denied')
    monkeypatch.setattr(fetch.tempfile, 'TemporaryFile', refuse)
    with pytest.raises(BusiError, match='cannot be written .Permission denied.. Choose a folder'): fetch_busi(tmp_path, url=s.url)
    assert not s.asked

def test_no_space(serve, tmp_path, busi, monkeypatch):
    asked = fake_kaggle(monkeypatch, busi.root.parent)
    Usage = namedtuple('Usage', 'total used free')
    monkeypatch.setattr(fetch.shutil, 'disk_usage', lambda p: Usage(10, 9, 1))
    with pytest.raises(BusiError, match='no space left'): fetch_busi(tmp_path, url=serve(busi.zip.read_bytes()).url)
    assert not asked                                    # another source would not help
    shutil.copy(busi.zip, tmp_path/'archive.zip')
    with pytest.raises(BusiError, match='no space left'): fetch_busi(tmp_path)
    assert FOLDER not in names(tmp_path)

def test_space_runs_out_while_writing_keeps_the_part(serve, tmp_path, busi, monkeypatch):
    s, real = serve(busi.zip.read_bytes()), Path.open
    class Full:
        def __init__(self, f): self.f, self.left = f, 2
        def __enter__(self): return self
        def __exit__(self, *args): self.f.close()
        def write(self, b):
            self.left -= 1
            if self.left < 0: raise OSError(errno.ENOSPC, 'No space left on device')
            return self.f.write(b)
    with monkeypatch.context() as m:
        m.setattr(Path, 'open', lambda self, mode='r', *args, **kw: Full(real(self, mode, *args, **kw)) if mode in ('ab', 'wb') and self.suffix == '.part' else real(self, mode, *args, **kw))
        with pytest.raises(BusiError, match='no space left'): fetch_busi(tmp_path, url=s.url, manifest=busi.manifest)
    assert names(tmp_path) == ['Dataset_BUSI.zip.part', 'Dataset_BUSI.zip.part.tag']
    fetch_busi(tmp_path, url=s.url, manifest=busi.manifest)
    assert s.asked[-1][0] == 'bytes=32768-'

def test_import_costs_no_network_libraries():
    code = "import sys, busi_unetpp.fetch; print([m for m in ('requests', 'pooch', 'kagglehub', 'torch', 'rich') if m in sys.modules])"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'


# --- BUS-BRA, through the same doors

@pytest.fixture(scope='module')
def busbra(tmp_path_factory):
    "A tiny BUS-BRA: its folder, its manifest, its zip as at Zenodo, and its files."
    tmp, rng = tmp_path_factory.mktemp('busbra'), np.random.default_rng(5)
    for folder, name in (('Images', 'bus_0001-l'), ('Images', 'bus_0002-l'), ('Masks', 'mask_0001-l'), ('Masks', 'mask_0002-l')):
        (tmp/'BUSBRA'/folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (120, 130), dtype=np.uint8)).save(tmp/'BUSBRA'/folder/f'{name}.png')
    (tmp/'BUSBRA'/'bus_data.csv').write_text('ID,Case,Pathology\nbus_0001-l,1,benign\nbus_0002-l,2,malignant\n')
    files = {p.relative_to(tmp).as_posix(): p.read_bytes() for p in sorted(tmp.rglob('*.*'))}
    return SimpleNamespace(root=tmp/'BUSBRA', manifest=make_busbra_manifest(tmp), zip=make_zip(tmp/'z.zip', files), files=files)

def test_busbra_downloads_resumes_verifies_and_shows_its_license(serve, tmp_path, busbra, capsys):
    s = serve(busbra.zip.read_bytes(), drops=[40_000], kind='application/octet-stream')
    root = fetch_busbra(tmp_path/'new', url=s.url, manifest=busbra.manifest, **FAST)
    assert root == tmp_path/'new'/'BUSBRA' and is_whole(verify(root, busbra.manifest)) and names(root.parent) == ['BUSBRA']
    assert [a[0] for a in s.asked] == [None, 'bytes=32768-']
    out = capsys.readouterr().out
    assert 'Fetching BUS-BRA to' in out and 'dataset BUS-BRA, all 4 files agree' in out and 'CC BY 4.0' in out and '10.1002/mp.16812' in out

def test_a_partial_busbra_is_kept_under_its_own_name(serve, tmp_path, busbra):
    s = serve(busbra.zip.read_bytes(), drops=[40_000])
    with pytest.raises(BusiError, match='are kept in .*BUSBRA.zip.part, and the next run goes on'): fetch_busbra(tmp_path, url=s.url, manifest=busbra.manifest, tries=1)
    assert names(tmp_path) == ['BUSBRA.zip.part', 'BUSBRA.zip.part.tag']
    fetch_busbra(tmp_path, url=s.url, manifest=busbra.manifest, keep_zip=True)
    assert names(tmp_path) == ['BUSBRA', 'BUSBRA.zip'] and s.asked[-1][0] == 'bytes=32768-'

def test_both_datasets_live_in_one_folder(serve, tmp_path, busi, busbra, no_network):
    shutil.copy(busi.zip, tmp_path/'archive.zip')
    shutil.copy(busbra.zip, tmp_path/'BUSBRA.zip')
    assert fetch_busi(tmp_path, manifest=busi.manifest) == tmp_path/FOLDER and fetch_busbra(tmp_path, manifest=busbra.manifest) == tmp_path/'BUSBRA'
    for _ in range(2): assert fetch_busbra(tmp_path, manifest=busbra.manifest) == tmp_path/'BUSBRA' and fetch_busi(tmp_path, manifest=busi.manifest) == tmp_path/FOLDER

def test_busbra_by_hand_without_a_top_folder(tmp_path, busbra, no_network):
    make_zip(tmp_path/'BUSBRA (1).zip', {k.partition('/')[2]: v for k, v in busbra.files.items()})
    assert fetch_busbra(tmp_path, manifest=busbra.manifest) == tmp_path/'BUSBRA'

def test_what_is_not_busbra_is_refused(tmp_path, busi, busbra, no_network):
    shutil.copy(busi.zip, tmp_path/'BUSBRA.zip')
    with pytest.raises(BusiError, match='so it is not BUS-BRA. Download it again'): fetch_busbra(tmp_path)
    assert names(tmp_path) == ['BUSBRA.zip']
    make_zip(tmp_path/'BUSBRA.zip', {**busbra.files, 'BUSBRA/Images/bus_0001-l.png': busbra.files['BUSBRA/Images/bus_0002-l.png']})
    with pytest.raises(BusiError, match=r'not BUS-BRA as published(.|\n)*altered    Images/bus_0001-l.png(.|\n)*move them away'): fetch_busbra(tmp_path, manifest=busbra.manifest)
    (tmp_path/'x'/'BUSBRA').mkdir(parents=True)
    with pytest.raises(BusiError, match='does not hold bus_data.csv'): fetch_busbra(tmp_path/'x')

def test_without_a_network_busbra_says_what_to_do(tmp_path, dead_url):
    with pytest.raises(BusiError) as e: fetch_busbra(tmp_path/'my data', url=dead_url, tries=2, **FAST)
    for text in ('BUS-BRA could not be downloaded', 'Zenodo: ', 'refused (2 tries)', BUSBRA_PAGE, 'BUSBRA.zip', f"busi-unetpp data fetch busbra '{tmp_path/'my data'}'"): assert text in str(e.value)
    assert names(tmp_path/'my data') == [] and BUSBRA_URL == 'https://zenodo.org/records/8231412/files/BUSBRA.zip?download=1'

def test_what_a_killed_job_left_is_not_the_dataset(tmp_path, busbra):
    shutil.copytree(busbra.root, tmp_path/'.busi-x'/'new')
    assert fetch._find(fetch.BUSBRA, tmp_path) is None


# --- damage of other kinds

def lzma_damage(data):
    "A zip packed by LZMA with one byte of its content changed."
    at = data.index(b'PK\x01\x02')//2
    return data[:at] + bytes([data[at] ^ 255]) + data[at + 1:]

def foreign_name(data):
    "A name that says it is UTF-8 and is not."
    return data.replace(b'\xc3\xa4', b'\xff\xfe')

@pytest.mark.parametrize('how', [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2, zipfile.ZIP_DEFLATED], ids=['lzma', 'bzip2', 'deflate'])
def test_damage_to_packed_bytes_is_the_archive_s_fault(tmp_path, how):
    content, found = bytes(range(256))*40, 0
    data = make_zip(tmp_path/'z.zip', {'a/one.png': content}, how).read_bytes()
    for at in range(40, data.index(b'PK\x01\x02') - 4, 7):
        (tmp_path/'z.zip').write_bytes(data[:at] + bytes([data[at] ^ 255]) + data[at + 1:])
        try: safe_unzip(tmp_path/'z.zip', tmp_path/'new', max_ratio=1e6)
        except SourceError as e:
            assert 'z.zip: not a complete zip archive' in str(e)
            found += 1
        else:                                                                   # a bit that does not matter
            assert (tmp_path/'new'/'a'/'one.png').read_bytes() == content
            shutil.rmtree(tmp_path/'new')
        assert names(tmp_path) == ['z.zip']
    assert found

@pytest.mark.parametrize('entries', [{'a': b'x', 'a/b': b'y'}, {'x'*300: b'x'}, {'a\0b': b'x', 'a': b'y'}, {'ä.png': b'x'}], ids=['file and folder', 'long', 'null', 'not UTF-8'])
def test_names_that_cannot_be_written_are_the_archive_s_fault(tmp_path, entries):
    data = make_zip(tmp_path/'z.zip', entries).read_bytes()
    (tmp_path/'z.zip').write_bytes(foreign_name(data))
    try: safe_unzip(tmp_path/'z.zip', tmp_path/'new', max_ratio=1e6)
    except SourceError as e: assert 'z.zip' in str(e) and names(tmp_path) == ['z.zip']
    else: assert '\0' in list(entries)[0]

@pytest.mark.parametrize('shift', [1, 4, 13])
def test_shifted_bytes(tmp_path, shift):
    data = make_zip(tmp_path/'z.zip', GOOD).read_bytes()
    for at in range(0, len(data), 11):
        (tmp_path/'z.zip').write_bytes(data[:at] + b'\0'*shift + data[at:])
        try: safe_unzip(tmp_path/'z.zip', tmp_path/f'new{at}', max_ratio=1e6)
        except SourceError as e: assert 'z.zip' in str(e)
    assert not [n for n in names(tmp_path) if n.startswith('.')]

def test_a_zip_of_very_many_empty_entries_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path/'z.zip', 'w') as z:
        for i in range(20_001): z.writestr(zipfile.ZipInfo(f'{i}'), b'')
    with pytest.raises(SourceError, match='holds 20001 entries'): safe_unzip(tmp_path/'z.zip', tmp_path/'new')
    assert names(tmp_path) == ['z.zip']

class Liar(BaseHTTPRequestHandler):
    "Answers with the headers and the bytes that its server holds."
    def log_message(self, *args): pass
    def do_GET(self):
        self.send_response(self.server.code)
        for k, v in self.server.heads: self.send_header(k, v)
        self.end_headers()
        self.wfile.write(self.server.body)

def lie(code, heads, body=b''):
    s = ThreadingHTTPServer(('127.0.0.1', 0), Liar)
    s.code, s.heads, s.body = code, heads, body
    threading.Thread(target=s.serve_forever, kwargs=dict(poll_interval=.01), daemon=True).start()
    return s, f'http://127.0.0.1:{s.server_port}/Dataset_BUSI.zip'

@pytest.mark.parametrize('code, heads', [(302, [('Location', 'http://[::1')]), (302, [('Location', 'http://a b c:99999999/')]), (302, [('Location', 'http://' + 'x'*70 + '/')]), (302, [('Location', 'file:///etc/passwd')]),
    (302, [('Location', '/Dataset_BUSI.zip')]), (200, [('Content-Length', '-5')]), (200, [('Content-Encoding', 'gzip'), ('Content-Length', '3')]), (206, [('Content-Range', 'bytes x-y/z')])])
def test_answers_that_make_no_sense_are_one_message(tmp_path, monkeypatch, no_kaggle, busi, code, heads):
    monkeypatch.setenv('NO_PROXY', '*')
    server, url = lie(code, heads, b'abc')
    for _ in range(2):                          # and the same at the next run: nothing bad stays
        with pytest.raises(BusiError, match='could not be downloaded') as e: fetch_busi(tmp_path, url=url, manifest=busi.manifest, tries=2, **FAST)
        assert 'Choose a folder' not in str(e.value) and names(tmp_path) == []
    server.shutdown()

def test_a_length_that_is_no_number_does_not_matter(tmp_path, monkeypatch, busi):
    monkeypatch.setenv('NO_PROXY', '*')
    server, url = lie(200, [('Content-Length', 'abc'), ('Connection', 'close')], busi.zip.read_bytes())
    try: fetch_busi(tmp_path, source='authors', url=url, manifest=busi.manifest, tries=1, **FAST)
    except BusiError as e: assert 'could not be downloaded' in str(e)          # if the library under ours refuses it
    assert names(tmp_path) in ([FOLDER], [])
    server.shutdown()

@pytest.mark.parametrize('spoil', [lzma_damage, foreign_name])
def test_a_bad_zip_from_a_server_does_not_stay(serve, tmp_path, busi, no_kaggle, spoil):
    good = make_zip(tmp_path/'good.zip', busi.files | {f'{FOLDER}/ä.txt': b'x'}, zipfile.ZIP_LZMA).read_bytes()
    (tmp_path/'data').mkdir()
    for _ in range(2):
        with pytest.raises(BusiError, match='not a complete zip archive'): fetch_busi(tmp_path/'data', url=serve(spoil(good)).url, manifest=busi.manifest, tries=1, **FAST)
        assert names(tmp_path/'data') == []
    assert fetch_busi(tmp_path/'data', url=serve(busi.zip.read_bytes()).url, manifest=busi.manifest, **FAST).name == FOLDER

def test_a_damaged_tag_beside_a_part_starts_over(serve, tmp_path, busi):
    (tmp_path/'Dataset_BUSI.zip.part').write_bytes(b'PK'*500)
    (tmp_path/'Dataset_BUSI.zip.part.tag').write_bytes(b'\xff\r\nX: y')
    assert fetch_busi(tmp_path, url=serve(busi.zip.read_bytes()).url, manifest=busi.manifest, **FAST).name == FOLDER
    assert names(tmp_path) == [FOLDER]

def test_what_a_killed_fetch_left_is_removed_and_its_zip_used(tmp_path, busi, no_network, monkeypatch):
    for folder in ('.busi-abc', '.unzip-xyz'): (tmp_path/folder/'new').mkdir(parents=True)
    shutil.copy(busi.zip, tmp_path/'.busi-Dataset_BUSI.zip')                    # killed between download and unpacking
    assert fetch_busi(tmp_path, manifest=busi.manifest).name == FOLDER and names(tmp_path) == [FOLDER]

def test_two_fetches_at_once_bring_one_copy(serve, tmp_path, busi):
    s = serve(busi.zip.read_bytes())
    from concurrent.futures import ThreadPoolExecutor
    with ThreadPoolExecutor(4) as pool: roots = list(pool.map(lambda _: fetch_busi(tmp_path, url=s.url, manifest=busi.manifest, **FAST), range(4)))
    assert set(roots) == {tmp_path/FOLDER} and len(s.asked) == 1 and names(tmp_path) == [FOLDER]
