"""Files are written whole or not at all, also on a disk that is really full."""
import csv
import errno
import json
import math
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from matplotlib.figure import Figure
from PIL import Image

from busi_unetpp import files
from busi_unetpp.dataset import BusiError
from busi_unetpp.files import check_writable, write_csv, write_figure, write_file, write_json

def names(folder): return sorted(p.name for p in folder.iterdir())

@settings(max_examples=20)
@given(st.lists(st.one_of(st.binary(max_size=3000), st.text(st.characters(blacklist_categories=['Cs']))), min_size=1, max_size=3))
def test_what_is_written_last_is_there_alone(versions):
    with tempfile.TemporaryDirectory() as tmp:
        path = Path(tmp)/'a'/'b'/'file'
        for data in versions: assert write_file(path, data) == path
        assert path.read_bytes() == (data.encode() if isinstance(data, str) else data) and names(path.parent) == ['file']

@pytest.mark.parametrize('code, why', [(errno.ENOSPC, 'disk is full'), (errno.EDQUOT, 'quota'), (errno.EFBIG, 'size limit'), (errno.EACCES, 'no permission'),
    (errno.EROFS, 'read-only'), (errno.EIO, os.strerror(errno.EIO))])
@pytest.mark.parametrize('step', ['open', 'fsync', 'replace'])
def test_a_failure_at_any_step_keeps_the_earlier_file(step, code, why, tmp_path, monkeypatch):
    path = write_file(tmp_path/'state', 'first')
    def fail(*args, **kw): raise OSError(code, os.strerror(code))
    with monkeypatch.context() as m:
        m.setattr(files if step == 'open' else files.os, step, fail, raising=step != 'open')  # a module's own `open` goes before the built-in one
        with pytest.raises(BusiError, match=f'state: could not be written: .*{why}'): write_file(path, 'second')
    assert path.read_text() == 'first' and names(tmp_path) == ['state']

def test_an_interrupt_leaves_nothing_half_written(tmp_path, monkeypatch):
    path = write_file(tmp_path/'state', 'first')
    def stop(fd): raise KeyboardInterrupt
    monkeypatch.setattr(files.os, 'fsync', stop)
    with pytest.raises(KeyboardInterrupt): write_file(path, 'second')
    assert path.read_text() == 'first' and names(tmp_path) == ['state']

def test_a_disk_that_is_really_full(tmp_path):
    pytest.importorskip('resource')
    code = ('import resource, signal, sys; from busi_unetpp.files import write_file; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n'
            'resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY)); write_file(sys.argv[1], b"x"*4000)\n'
            'try: write_file(sys.argv[1], b"y"*6000)\nexcept ValueError as e: print(type(e).__name__, e)')
    r = subprocess.run([sys.executable, '-c', code, str(tmp_path/'state')], capture_output=True, text=True)
    assert r.stdout.startswith('BusiError') and 'state: could not be written: the file size limit' in r.stdout, r.stderr
    assert (tmp_path/'state').read_bytes() == b'x'*4000 and names(tmp_path) == ['state']

def test_a_reader_never_sees_half_a_file(tmp_path):
    path, versions, seen = tmp_path/'f', [bytes([i])*50_000 for i in range(3)], []
    write_file(path, versions[0])
    with ThreadPoolExecutor() as pool:
        writers = [pool.submit(write_file, path, versions[1 + i % 2]) for i in range(40)]
        while not all(w.done() for w in writers): seen.append(path.read_bytes())
    assert all(w.result() == path for w in writers) and seen and all(s in versions for s in seen) and path.read_bytes() in versions[1:] and names(tmp_path) == ['f']

def test_colleagues_may_read_it(tmp_path):
    umask = os.umask(0o022)
    try: assert write_file(tmp_path/'f', 'x').stat().st_mode & 0o777 == 0o644
    finally: os.umask(umask)

json_values = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_infinity=False) | st.text(st.characters(blacklist_categories=['Cs'])),
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(st.characters(blacklist_categories=['Cs'])), v, max_size=3), max_leaves=8)

@settings(max_examples=40)
@given(json_values)
def test_json_is_strict_and_reads_back(obj):
    def no_nan(o):
        if isinstance(o, dict): return {k: no_nan(v) for k, v in o.items()}
        return [no_nan(v) for v in o] if isinstance(o, list) else None if isinstance(o, float) and math.isnan(o) else o
    def refuse(name): raise AssertionError(f'{name} is not JSON')
    with tempfile.TemporaryDirectory() as tmp:
        assert json.loads(write_json(Path(tmp)/'x.json', obj).read_text(), parse_constant=refuse) == no_nan(obj)

def test_csv_and_figure_read_back(tmp_path):
    df = pd.DataFrame(dict(image=['a, "b".png', 'ü (1).png'], dice=[.1, 1/3]))
    pd.testing.assert_frame_equal(pd.read_csv(write_csv(tmp_path/'t.csv', df)), df, check_exact=True)
    assert b'\r' not in (tmp_path/'t.csv').read_bytes()
    fig = Figure(figsize=(2, 1))
    fig.subplots().plot([0, 1])
    assert Image.open(write_figure(tmp_path/'f.png', fig, dpi=50)).size == (100, 50) and names(tmp_path) == ['f.png', 't.csv']

def test_a_folder_is_tried_and_left_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    assert check_writable('~/deep/run') == tmp_path/'deep'/'run' and names(tmp_path/'deep'/'run') == []

def test_below_a_file_nothing_can_be_written(tmp_path):
    (tmp_path/'notes.txt').write_text('mine')
    with pytest.raises(BusiError, match='notes.txt'): check_writable(tmp_path/'notes.txt'/'run')
    assert (tmp_path/'notes.txt').read_text() == 'mine'

@pytest.mark.skipif(not Path('/proc/self').exists(), reason='there is no /proc here')
def test_a_folder_that_the_system_refuses():
    with pytest.raises(BusiError, match='/proc/.*could not be written'): check_writable('/proc/busi_unetpp')

@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid() == 0, reason='permissions do not stop root')
def test_a_folder_without_permission(tmp_path):
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(BusiError, match='no permission'): check_writable(tmp_path/'run')
    finally: tmp_path.chmod(0o755)


# names, claims and what comes from elsewhere

def test_names_are_shown_in_messages_and_tables(tmp_path):
    from busi_unetpp.dataset import shown
    odd = 'a\x1b]0;title\x07\r\u202eb\udce9.png'
    assert shown(odd) == r'a\x1b]0;title\x07\r\u202eb\xe9.png' and shown(shown(odd)) == shown(odd) and shown('Ä 中 👩\u200d⚕️') == 'Ä 中 👩\u200d⚕️'
    message = str(BusiError(f'{odd}: no such file.\nSecond line.'))
    assert not set(message) & set('\x1b\x07\r\u202e') and message.endswith('\nSecond line.')
    message.encode()

@given(st.lists(st.text(max_size=6), min_size=1, max_size=5))
def test_cells_come_back_and_are_never_formulas(names):
    from busi_unetpp.dataset import shown
    from busi_unetpp.files import plain_cell, read_table
    with tempfile.TemporaryDirectory() as tmp:
        path = write_csv(Path(tmp)/'t.csv', pd.DataFrame(dict(name=names, x=1.)))
        assert read_table(path, dict(name=str)).name.tolist() == [shown(n) for n in names]
        with path.open(newline='', encoding='utf-8') as f: cells = [r[0] for r in csv.reader(f)][1:]
        assert not any(c[:1] in set('=+-@\t\r') for c in cells if c) and [plain_cell(c) for c in cells] == [shown(n) for n in names]

def test_a_name_may_be_as_long_as_the_file_system_allows(tmp_path):
    longest = 'x'*251 + '.png'
    assert write_file(tmp_path/longest, 'a').read_text() == 'a'
    with pytest.raises(BusiError, match='the name is too long'): write_file(tmp_path/('x'*300), 'a')

def test_a_folder_is_held_by_one_process_and_freed_when_it_is_killed(tmp_path):
    from busi_unetpp.files import LOCK, TEMPORARY, claim
    out = tmp_path/'out'
    code = f'import sys, time; from busi_unetpp.files import claim\nwith claim({str(out)!r}): print("held", flush=True); time.sleep(600)'
    other = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == 'held\n'
    with pytest.raises(BusiError, match='out: another process is writing there'), claim(out): pass
    other.kill()
    other.wait()
    assert [p.name for p in out.iterdir()] == [LOCK]
    (out/'images').mkdir()
    for p in (out/f'{TEMPORARY}{"0"*32}', out/'images'/f'{TEMPORARY}{"1"*32}', out/'mine.txt'): p.write_text('x')
    with claim(out): assert {p.name for p in out.iterdir()} == {LOCK, 'images', 'mine.txt'}
    assert {p.name for p in out.iterdir()} == {'images', 'mine.txt'} and not list((out/'images').iterdir())

def test_a_claim_that_comes_to_nothing_leaves_nothing(tmp_path):
    from busi_unetpp.files import claim
    with pytest.raises(BusiError), claim(tmp_path/'a'/'b'): raise BusiError('x')
    assert not list(tmp_path.iterdir())

def test_two_writability_checks_do_not_meet(tmp_path):
    from concurrent.futures import ThreadPoolExecutor
    with ThreadPoolExecutor(8) as pool: assert list(pool.map(check_writable, [tmp_path]*200)) == [tmp_path]*200
    assert not list(tmp_path.iterdir())

@pytest.mark.skipif(not Path('/proc/self').exists(), reason='no /proc')
def test_a_folder_that_cannot_be_made_is_named_without_a_test_file_and_free_space():
    with pytest.raises(BusiError, match='^/proc/x: could not be written: the folder cannot be made') as e: check_writable('/proc/x')
    assert 'write-test' not in str(e.value) and 'space' not in str(e.value)

@given(st.one_of(st.binary(max_size=60), st.text(max_size=60).map(lambda s: s.encode(errors='replace')),
                 st.recursive(st.none() | st.booleans() | st.floats() | st.text(max_size=3), lambda c: st.lists(c, max_size=3) | st.dictionaries(st.sampled_from('abc'), c, max_size=3)).map(lambda o: json.dumps(o).encode())))
def test_whatever_a_file_holds_it_is_read_or_named(data):
    from busi_unetpp.files import read_json, read_table
    with tempfile.TemporaryDirectory() as tmp:
        (path := Path(tmp)/'f.json').write_bytes(data)
        for read in (lambda: read_json(path, {'a': int, 'b?': {'c': float}}), lambda: read_table(path, {'a': int, 'b': str, 'c?': float})):
            try: found = read()
            except BusiError as e: assert str(e).startswith(str(path))
            else: assert 'a' in found

@pytest.mark.parametrize('text, why', [('['*100_000, 'cannot be read as JSON'), ('{"a": ' + '1'*5000 + '}', 'cannot be read as JSON|a is'), ('{"a": NaN}', 'a is nan'), ('{"a": true}', 'a is True'), ('{"a": 1e999}', 'a is inf')])
def test_json_that_python_accepts_and_nobody_means(tmp_path, text, why):
    from busi_unetpp.files import read_json
    with pytest.raises(BusiError, match=why): read_json(write_file(tmp_path/'f.json', text), {'a': (int, float)})

def test_leftovers_of_earlier_versions_go_and_young_ones_of_others_stay(tmp_path):
    from busi_unetpp.files import TEMPORARY, claim, remove_leftovers
    old = ['.history.csv.' + 'a'*32, '.write-test', '.results.json.part']
    for n in [*old, '.mine', 'history.csv']: (tmp_path/n).write_text('x')
    with claim(tmp_path): pass
    assert names(tmp_path) == ['.mine', 'history.csv']
    for n, age in (('1'*32, 7200), ('2'*32, 0)):
        (tmp_path/f'{TEMPORARY}{n}').write_text('x')
        os.utime(tmp_path/f'{TEMPORARY}{n}', (os.stat(tmp_path).st_mtime - age,)*2)
    remove_leftovers(tmp_path, 3600)
    assert names(tmp_path) == [f'{TEMPORARY}{"2"*32}', '.mine', 'history.csv']
    remove_leftovers(tmp_path/'none')
