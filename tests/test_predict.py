"""From files to masks: model files that may not be trusted, folders of everything, jobs that are interrupted, and the notice on every output."""
import base64
import csv
import io
import json
import os
import pickle
import tracemalloc

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from PIL import Image

from busi_unetpp import predict as predict_module
from busi_unetpp.checkpoint import save_weights
from busi_unetpp.dataset import BusiError, read_mask
from busi_unetpp.encoder import build_unetpp
from busi_unetpp.images import Frame, PIXELS
from busi_unetpp.predict import (KINDS, NOTICE, ROW_COLUMNS, Model, draw_overlay, load_model, measure_lesions, predict, predict_folder, safe_name, save_model, scale_bar, shipped_models)
from busi_unetpp.preprocess import resize_image
from test_images import RAMP, png_of, region, write_dicom

pytestmark = pytest.mark.usefixtures('one_thread')
ARGS = dict(filters=(4, 4), bottleneck=4)

@pytest.fixture(scope='module')
def tiny():
    torch.manual_seed(0)
    return Model(build_unetpp(**ARGS).eval(), size=48, threshold=.5, temperature=1.3, flag=.3, name='tiny', card=dict(data='none'), digest='abc')

class Dark(torch.nn.Module):
    "Stands for a network: what is darker than a half is tumor; counts the images it is shown."
    def __init__(self):
        super().__init__()
        self.k, self.seen = torch.nn.Parameter(torch.tensor(30.)), 0
    def forward(self, x):
        self.seen += len(x)
        return self.k*(.5 - x)

@pytest.fixture
def dark(): return Model(Dark(), size=64, flag=.5, name='dark', digest='d')

def spot(h=90, w=140, top=20, left=30, height=40, width=60):
    a = np.full((h, w), 200, np.uint8)
    a[top:top + height, left:left + width] = 20
    return a


# model files

def test_what_half_precision_cannot_hold_stays_whole(tmp_path, tiny):
    net = build_unetpp(**ARGS).eval()
    net.nodes['0_1'].conv[2].running_var.fill_(1e6)
    again = load_model(save_model(tmp_path/'m.safetensors', Model(net, 48), ARGS), 'cpu').net
    assert torch.equal(again.nodes['0_1'].conv[2].running_var, net.nodes['0_1'].conv[2].running_var)
    assert all(v.isfinite().all() for v in again.state_dict().values())

@pytest.mark.parametrize('half', [True, False])
def test_model_file_round_trip(tmp_path, tiny, half):
    got = load_model(save_model(tmp_path/'m.safetensors', tiny, ARGS, half), 'cpu')
    assert (got.size, got.threshold, got.temperature, got.flag, got.card, got.name) == (48, .5, 1.3, .3, dict(data='none'), 'm') and not got.net.training
    assert all(p.dtype == torch.float32 for p in got.net.parameters())
    for k, v in tiny.net.state_dict().items(): torch.testing.assert_close(got.net.state_dict()[k], v, atol=1e-3 if half else 0, rtol=1e-3 if half else 0)

def test_run_folder(tmp_path, tiny):
    save_weights(tmp_path/'run'/'model.safetensors', tiny.net, ARGS)
    with pytest.raises(BusiError, match='which size'): load_model(tmp_path/'run')
    (tmp_path/'run'/'config.json').write_text(json.dumps(dict(recipe=dict(size=64))))
    got = load_model(tmp_path/'run', 'cpu')
    assert (got.size, got.threshold, got.flag, got.name) == (64, .5, None, 'run')

class Exploit:
    def __reduce__(self): return os.mkdir, ('EXPLOITED',)

@pytest.mark.parametrize('ending', ['pth', 'pkl', 'pt', 'ckpt', 'bin', 'safetensors', ''])
def test_nothing_is_unpickled(tmp_path, monkeypatch, ending):
    monkeypatch.chdir(tmp_path)
    (tmp_path/f'm.{ending}').write_bytes(pickle.dumps(Exploit()))
    with pytest.raises(BusiError, match='not a model'): load_model(tmp_path/f'm.{ending}')
    torch.save(Exploit(), tmp_path/f'n.{ending}')
    with pytest.raises(BusiError, match='not a model'): load_model(tmp_path/f'n.{ending}')
    assert not (tmp_path/'EXPLOITED').exists()

@pytest.mark.parametrize('args', [dict(filters=[10**6, 10**6], bottleneck=10**6), dict(filters=[4, 4], bottleneck=5), dict(encoder='hf-hub:a/b'), dict(encoder='local-dir:/tmp'), dict(encoder=5), dict(smp='tu-resnet18'), dict(smp=5), dict(nonsense=1), [1], 'x', None])
def test_headers_that_lie(tmp_path, monkeypatch, tiny, args):
    import socket
    def offline(*a, **k): raise AssertionError('the network was asked')
    monkeypatch.setattr(socket.socket, 'connect', offline)
    with pytest.raises(BusiError, match='not a model'): load_model(save_model(tmp_path/'m.safetensors', tiny, args))

@pytest.mark.parametrize('extra', [dict(), dict(size=7), dict(size='48'), dict(size=48, threshold='x'), dict(size=48, threshold=2), dict(size=48, temperature=0), dict(size=48, flag=float('nan')), [1], 5])
def test_choices_that_cannot_be(tmp_path, tiny, extra):
    meta = dict(unetpp=json.dumps(ARGS), busi_unetpp=json.dumps(extra))
    (tmp_path/'m.safetensors').write_bytes(safetensors.torch.save({k: v.contiguous() for k, v in tiny.net.state_dict().items()}, meta))
    with pytest.raises(BusiError, match='not a model'): load_model(tmp_path/'m.safetensors')

def test_cut_weights_and_missing_names(tmp_path, tiny):
    path = save_model(tmp_path/'m.safetensors', tiny, ARGS)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BusiError, match='damaged'): load_model(path)
    for name in ('nonsense', tmp_path, tmp_path/'none.safetensors'):
        with pytest.raises(BusiError, match='no such model'): load_model(name)

@pytest.mark.skipif('strong' not in shipped_models(), reason='THE PACKAGE HAS NO strong MODEL')
def test_the_shipped_model(monkeypatch):
    import socket
    def offline(*a, **k): raise AssertionError('the network was asked')
    monkeypatch.setattr(socket.socket, 'connect', offline)
    model = load_model(device='cpu')
    p = predict(RAMP, model, tta=False)
    assert p.mask.shape == RAMP.shape and model.card and model.digest and np.isfinite(p.probability).all()


# one image

def test_everything_is_at_the_original_size(dark):
    p = predict(spot(), dark)
    truth = spot() < 100
    assert p.mask.shape == p.probability.shape == p.uncertainty.shape == truth.shape and p.mask.dtype == bool
    assert 2*(p.mask & truth).sum()/(p.mask.sum() + truth.sum()) > .97
    assert 0 <= p.probability.min() and p.probability.max() <= 1 and 0 <= p.uncertainty.min() and p.uncertainty.max() <= 1.0001
    r = p.lesions.iloc[0]
    assert len(p.lesions) == 1 and r.area_px == p.mask.sum() and np.isnan(r.area_mm2) and r.solidity > .95 and r.mean_probability > .9
    assert np.abs(np.array([r.top, r.left, r.bottom, r.right]) - [20, 30, 60, 90]).max() <= 3

def test_tta_costs_four_views_and_can_be_left_out(dark):
    predict(spot(), dark)
    assert dark.net.seen == 1                  # a single view is the model's own choice
    predict(spot(), dark, tta=True)
    assert dark.net.seen == 5
    dark.tta = True
    predict(spot(), dark)
    assert dark.net.seen == 9

def test_threshold_temperature_and_flag(dark):
    for threshold, found in ((.999999, 0), (.5, 1)):
        dark.threshold = threshold
        assert len(predict(spot(), dark).lesions) == found
    p = predict(spot(), dark, tta=False)
    dark.temperature = 100
    assert predict(spot(), dark, tta=False).score > p.score + .2
    for flag, asked in ((None, None), (-1, True), (1, False)):
        dark.flag = flag
        assert predict(spot(), dark).flag is asked

def test_dicom_gives_square_millimeters(tmp_path, dark):
    path = write_dicom(tmp_path/'a.dcm', np.stack([spot(), spot(top=40)]), SequenceOfUltrasoundRegions=[region(.02, .01)])
    p = predict(path, dark, frame=2)
    assert p.lesions.area_mm2[0] == pytest.approx(p.mask.sum()*.02) and abs(p.lesions.top[0] - 40) <= 3 and p.name == 'a.dcm, frame 2 of 2'

def test_repr_shows_and_warns(dark):
    p = predict(Frame('<b>&.png', spot(), (.1, .1)), dark)
    im = Image.open(io.BytesIO(p._repr_png_()))
    h = p._repr_html_()
    assert im.size[0] >= 360 and im.text['Notice'] == NOTICE and NOTICE in h and NOTICE in repr(p) and '<b>&' not in h and '<table' in h
    Image.open(io.BytesIO(base64.b64decode(h.split('base64,')[1].split('"')[0]))).load()
    assert '<table' not in predict(np.full((50, 50), 200, np.uint8), dark)._repr_html_()

@pytest.mark.parametrize('shape', [(1, 1), (1, 300), (300, 1), (2, 2)])
def test_lesions_without_a_hull(shape):
    mask = np.zeros((400, 400), bool)
    mask[5:5 + shape[0], 5:5 + shape[1]] = True
    t = measure_lesions(mask, mask*.7, (1, 1))
    assert (t.area_px[0], t.solidity[0], t.area_mm2[0]) == (mask.sum(), 1, mask.sum()) and t.notna().all().all()

@pytest.mark.parametrize('shape', [(16, 16), (16, 4000), (4000, 16), (700, 900)])
@pytest.mark.parametrize('spacing', [None, (.001, .001), (50., 80.)])
def test_overlays_of_any_shape(shape, spacing):
    im = np.asarray(draw_overlay(np.full(shape, 90, np.uint8), np.eye(*shape) > 0, spacing, '12 findings, please check'))
    assert im.shape[1] >= 360 and max(im.shape) <= 1300
    length, text = scale_bar(shape[1], spacing)
    assert 0 < length <= shape[1]/4 + 1e-9 and float(text.split()[0]) > 0 and text.endswith('mm' if spacing else 'pixels')


# folders

@pytest.fixture
def data(tmp_path):
    "Everything at once: eight pictures that can be read, and six files that cannot."
    root = tmp_path/'in'
    for d in ('a', 'b', 'c'):
        (root/d).mkdir(parents=True)
        Image.fromarray(spot(top=5)).save(root/d/'same.png')
    Image.fromarray(spot()).save(root/'Ä 中.jpg')
    Image.fromarray(spot()).save(root/'results.tif')
    write_dicom(root/'film.dcm', np.stack([spot(), spot(top=40), np.full((90, 140), 250, np.uint8)]), SequenceOfUltrasoundRegions=[region(.02, .01)])
    (root/'bomb.png').write_bytes(png_of(50000, 50000))
    (root/'cut.png').write_bytes((root/'a'/'same.png').read_bytes()[:90])
    (root/'empty.bmp').write_bytes(b'')
    Image.new('L', (1, 1)).save(root/'one.png')
    Image.fromarray(np.full((40, 40), np.nan, np.float32)).save(root/'nan.tif')
    (tmp_path/'secret.png').write_bytes((root/'a'/'same.png').read_bytes())
    (root/'leak.png').symlink_to(tmp_path/'secret.png')
    return root

def snapshot(out): return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob('*')) if p.is_file()}

def test_a_folder_of_everything(tmp_path, data, dark):
    out = tmp_path/'out'
    table = predict_folder(data, out, dark, batch_size=3)
    assert len(table) == 8 and tuple(table.columns) == ROW_COLUMNS and table.result.is_unique and (table.notice == NOTICE).all()
    assert {os.path.basename(p) for p in table.attrs['unreadable']} == {'bomb.png', 'cut.png', 'empty.bmp', 'one.png', 'nan.tif', 'leak.png'}
    assert pd.read_csv(out/'unreadable.csv').file.tolist() == list(table.attrs['unreadable'])
    for r in table.itertuples():
        assert read_mask(out/f'{r.result}_mask.png').shape == (r.height, r.width)
        assert read_mask(out/f'{r.result}_mask.png').sum() == r.area_px
        for kind in KINDS:
            with Image.open(out/f'{r.result}_{kind}.png') as im: assert im.text['Notice'] == NOTICE
        one = json.loads((out/f'{r.result}.json').read_text())
        assert one['notice'] == NOTICE and len(one['lesions']) == r.lesions and one['uncertainty'] == pytest.approx(r.uncertainty, abs=1e-4)
    film = table[table.file.str.endswith('film.dcm')]
    assert film.frame.tolist() == [1, 2, 3] and film.lesions.tolist() == [1, 1, 0] and film.area_mm2.iloc[2] == 0
    assert film.area_mm2.iloc[0] == pytest.approx(film.area_px.iloc[0]*.02, rel=1e-4)
    assert table[~table.file.str.endswith('film.dcm')].area_mm2.isna().all()
    def no_constant(c): raise AssertionError(f'{c} is not JSON')
    whole = json.loads((out/'results.json').read_text(), parse_constant=no_constant)
    assert whole['complete'] and whole['predicted'] == 8 == len(whole['images']) and len(whole['unreadable']) == 6 and whole['notice'] == NOTICE
    assert NOTICE in (out/'README.txt').read_text() and 'Doe' not in ''.join(map(str, snapshot(out).values()))
    probability = np.asarray(Image.open(out/f'{film.result.iloc[0]}_probability.png'))/65535
    np.testing.assert_allclose(probability, predict(data/'film.dcm', dark).probability, atol=1e-4)

def test_batches_change_nothing(tmp_path, data, tiny):
    one, many = (predict_folder(data, tmp_path/f'out{b}', tiny, batch_size=b, tta=False) for b in (1, 100))
    pd.testing.assert_frame_equal(one, many, atol=1e-3)

def test_earlier_results_are_not_overwritten_unasked(tmp_path, data, dark):
    before = predict_folder(data/'a', tmp_path/'out', dark)
    with pytest.raises(BusiError, match='--resume'): predict_folder(data, tmp_path/'out', dark)
    assert len(pd.read_csv(tmp_path/'out'/'results.csv')) == 1
    dark.net.seen = 0
    pd.testing.assert_frame_equal(predict_folder(data/'a', tmp_path/'out', dark, overwrite=True), before)
    assert dark.net.seen == 1

@pytest.mark.parametrize('error', [KeyboardInterrupt, RuntimeError])
def test_interrupted_and_resumed(tmp_path, data, dark, monkeypatch, error):
    whole = predict_folder(data, tmp_path/'whole', dark, batch_size=2)
    real, calls = predict_module.save_prediction, []
    def interrupted(*args):
        calls.append(args)
        if len(calls) == 4: raise error()
        return real(*args)
    out = tmp_path/'out'
    with monkeypatch.context() as m:
        m.setattr(predict_module, 'save_prediction', interrupted)
        with pytest.raises(error): predict_folder(data, out, dark, batch_size=2)
    assert len(pd.read_csv(out/'results.csv')) == 3 and json.loads((out/'results.json').read_text())['complete'] is False
    with open(out/'results.csv', 'a') as f: f.write('torn,li')                   # as if the power had failed
    dark.net.seen = 0
    again = predict_folder(data, out, dark, batch_size=2, resume=True)
    assert dark.net.seen == 8 - 3
    pd.testing.assert_frame_equal(again, whole)
    assert snapshot(out) == snapshot(tmp_path/'whole')

def test_resume_notices_what_has_changed(tmp_path, data, dark):
    out = tmp_path/'out'
    table = predict_folder(data, out, dark)
    def views(**more):
        dark.net.seen = 0
        predict_folder(data, out, dark, resume=True, **more)
        return dark.net.seen
    assert views() == 0
    Image.fromarray(spot(top=9)).save(data/'a'/'same.png')
    assert views() == 1
    (out/f'{table.result[3]}_overlay.png').unlink()
    (out/f'{table.result[4]}.json').write_text('torn {')
    assert views() == 2
    dark.threshold = .6
    assert views() == 8
    assert views(tta=True) == 32

def test_memory_does_not_grow(tmp_path, dark, monkeypatch):
    (tmp_path/'in').mkdir()
    monkeypatch.setattr(os, 'fsync', lambda f: None)         # only the memory is looked at
    for i in range(200): Image.fromarray(spot(150, 200, top=i % 90)).save(tmp_path/'in'/f'{i}.bmp')
    def peak(n):
        files = [tmp_path/'in'/f'{i}.bmp' for i in range(n)]
        tracemalloc.start()
        predict_folder(files, tmp_path/f'out{n}', dark, batch_size=4, tta=False)
        high = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return high
    peak(4)
    few, many = peak(12), peak(200)
    assert many < few + 3e6, (few, many)                     # the maps of 200 images are 50 MB

def test_results_inside_the_images_are_not_read(tmp_path, data, dark):
    first = predict_folder(data, data/'out', dark)
    pd.testing.assert_frame_equal(predict_folder(data, data/'out', dark, resume=True), first)

def test_names_that_are_no_text(tmp_path, dark):
    name = os.fsencode(tmp_path) + b'/in/\xff\xfe.png'
    (tmp_path/'in').mkdir()
    try: Image.fromarray(spot()).save(open(name, 'wb'), 'png')
    except OSError: pytest.skip('this file system wants UTF-8')
    (tmp_path/'in'/'=1+1.png').write_bytes(open(name, 'rb').read())
    open(os.fsencode(tmp_path) + b'/in/\xfd.png', 'wb').close()
    table = predict_folder(tmp_path/'in', tmp_path/'out', dark)
    assert len(table) == 2 and len(table.attrs['unreadable']) == 1
    with open(tmp_path/'out'/'results.csv', newline='', encoding='utf-8') as f: assert len(list(csv.reader(f))) == 3

@pytest.mark.parametrize('name', ['../../x.png', '/etc/passwd', '..', '.', 'a/b', 'con\n\t.png', 'x'*400, 'a\0b', '..\\..\\x.png'])
def test_safe_names(name):
    got = safe_name(Frame(name, None, frames=2))
    assert got and not got.startswith('.') and len(got) < 100 and not set(got) & set('/\\\0\n\t:*?"<>|') and '..' not in got

def test_nothing_to_do_and_bad_input(tmp_path, data, dark):
    (tmp_path/'empty').mkdir()
    for paths, words in ((tmp_path/'empty', 'No images found'), (tmp_path/'none', 'no such file'), ([], 'No images found'), (f'{data}/*.xyz', 'no file matches')):
        with pytest.raises(BusiError, match=words): predict_folder(paths, tmp_path/'out', dark)
    with pytest.raises(BusiError, match='batch_size'): predict_folder(data, tmp_path/'out', dark, batch_size=0)
    (tmp_path/'file').write_text('')
    with pytest.raises(BusiError): predict_folder(data, tmp_path/'file'/'out', dark)
    table = predict_folder(data/'empty.bmp', tmp_path/'out', dark)
    assert len(table) == 0 and len(table.attrs['unreadable']) == 1

def test_a_network_that_returns_nan_says_so(dark):
    with torch.no_grad(): dark.net.k.fill_(float('nan'))
    with pytest.raises(BusiError, match='NaN'): predict(spot(), dark)

def test_a_full_disk_is_a_busi_error(tmp_path, data, dark, monkeypatch):
    def full(*args): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(predict_module.Results, 'add', full)
    with pytest.raises(BusiError, match='No space left'): predict_folder(data, tmp_path/'out', dark)

def test_progress_on_request(tmp_path, data, dark, capsys):
    predict_folder(data/'a', tmp_path/'quiet', dark)
    assert capsys.readouterr().err == ''
    predict_folder(data/'a', tmp_path/'loud', dark, progress=True)
    assert '1/1' in capsys.readouterr().err


# doubtful images are named (issue 16)

def doubtful(folder):
    "A flat image, a film with a window beside its pixels, an implausible size of a pixel, and a sound image."
    folder.mkdir()
    Image.fromarray(RAMP*0 + 9).save(folder/'flat.png')
    write_dicom(folder/'window.dcm', RAMP[None], WindowCenter=9000, WindowWidth=10)
    write_dicom(folder/'spacing.dcm', RAMP[None], PixelSpacing=['1e308', '1e308'])
    Image.fromarray(RAMP).save(folder/'sound.png')
    (folder/'bad.png').write_bytes(b'no image')
    return folder

def test_a_doubtful_image_is_never_a_plain_nothing_found(tmp_path):
    torch.manual_seed(0)
    model = Model(build_unetpp(filters=(4, 4), bottleneck=4).eval(), size=48, threshold=.99)
    table = predict_folder(doubtful(tmp_path/'in'), tmp_path/'out', model, tta=False, progress=False)
    words = dict(flat='flat', window='center 9000', spacing='cannot be true', sound='')
    rows = {os.path.splitext(os.path.basename(r.file))[0]: r for r in table.itertuples()}
    assert set(rows) == set(words)
    for name, word in words.items():
        record = json.loads((tmp_path/'out'/f'{rows[name].result}.json').read_text())
        assert rows[name].warning == record['warning'] and word in record['warning'] and bool(word) == bool(record['warning'])
    whole = json.loads((tmp_path/'out'/'results.json').read_text())
    assert sum(bool(r['warning']) for r in whole['images']) == 3
    assert rows['spacing'].area_mm2 != rows['spacing'].area_mm2
    plain, marked = (Image.open(tmp_path/'out'/f'{rows[n].result}_overlay.png').height for n in ('sound', 'flat'))
    assert marked > plain
    (path, why), = table.attrs['unreadable'].items()
    assert path.endswith('bad.png') and 'bad.png' not in why and why.startswith('not a picture')
    assert (tmp_path/'out'/'unreadable.csv').read_text().count('bad.png') == 1

def test_a_pipe_that_is_named_does_not_hang(tmp_path):
    os.mkfifo(tmp_path/'pipe.png')
    for path in (tmp_path/'pipe.png', '/dev/zero'):
        with pytest.raises(BusiError, match='a pipe or a device'): predict_folder(path, tmp_path/'out')

# jobs of two models, killed jobs, and names

def other_model(dark):
    model = Model(Dark(), size=64, flag=.5, name='other', digest='o', threshold=.999)
    with torch.no_grad(): model.net.k.fill_(3.)
    return model

@pytest.mark.parametrize('cut', range(1, 5))
def test_results_of_two_models_never_mix(tmp_path, data, dark, monkeypatch, cut):
    "Model B is cut off after its first pictures of an image, before the numbers; then A goes on."
    out = tmp_path/'out'
    predict_folder(data/'a', out, dark)
    whole = snapshot(out)
    real, calls = predict_module.write_file, []
    def cut_off(path, content):
        if path.parent.name == 'images':
            calls.append(path)
            if len(calls) > cut: raise KeyboardInterrupt
        return real(path, content)
    with monkeypatch.context() as m:
        m.setattr(predict_module, 'write_file', cut_off)
        m.setattr(predict_module, 'write_json', cut_off)
        with pytest.raises(KeyboardInterrupt): predict_folder(data/'a', out, other_model(dark), resume=True)
    assert not (out/'images'/'same.json').exists()                             # no numbers of A beside pictures of B
    predict_folder(data/'a', out, dark, resume=True)
    assert snapshot(out) == whole

def test_a_picture_of_another_model_is_noticed_wherever_it_comes_from(tmp_path, data, dark):
    a, b = tmp_path/'a', tmp_path/'b'
    predict_folder(data/'a', a, dark)
    whole = snapshot(a)
    predict_folder(data/'a', b, other_model(dark))
    for kind in KINDS:
        (a/'images'/f'same_{kind}.png').write_bytes((b/'images'/f'same_{kind}.png').read_bytes())
        predict_folder(data/'a', a, dark, resume=True)
        assert snapshot(a) == whole

def test_earlier_tables_stay_until_the_new_ones_are_whole(tmp_path, data, dark, monkeypatch):
    out = tmp_path/'out'
    predict_folder(data, out, dark)
    tables = {n: (out/n).read_bytes() for n in ('results.csv', 'results.json')}
    seen = []
    def look(self, record):
        seen.append({n: (out/n).read_bytes() for n in tables})
    with monkeypatch.context() as m:
        m.setattr(predict_module.Results, 'add', look)
        m.setattr(predict_module.Results, 'close', lambda self, *args: None)   # killed: nothing is closed
        predict_folder(data, out, dark, resume=True)
    assert len(seen) == 8 and all(s == tables for s in seen)
    predict_folder(data, out, dark, resume=True)
    assert {n: (out/n).read_bytes() for n in tables} == tables and not [p for p in out.iterdir() if p.name.startswith('.')]

def test_an_interrupted_job_never_says_complete_beside_a_part_of_the_table(tmp_path, data, dark, monkeypatch):
    out = tmp_path/'out'
    predict_folder(data, out, dark)
    real = os.replace
    def cut_off(a, b):
        real(a, b)
        if str(b).endswith('results.csv'): raise KeyboardInterrupt             # between the two tables
    monkeypatch.setattr(predict_module.os, 'replace', cut_off)
    with pytest.raises(KeyboardInterrupt): predict_folder(data/'a', out, dark, resume=True)
    assert len(pd.read_csv(out/'results.csv')) == 1 and not (out/'results.json').exists()

def test_overwriting_with_fewer_images_leaves_no_others(tmp_path, data, dark):
    out = tmp_path/'out'
    predict_folder(data, out, dark)
    (out/'images'/'notes.txt').write_text('mine')
    table = predict_folder(data/'a', out, dark, overwrite=True)
    assert sorted(p.name for p in (out/'images').iterdir()) == sorted(['notes.txt', 'same.json', *(f'same_{k}.png' for k in KINDS)]) and len(table) == 1

@pytest.mark.parametrize('kw', [{}, dict(overwrite=True)])
def test_a_folder_of_somebody_s_images_is_not_written_into(tmp_path, data, dark, kw):
    (tmp_path/'set'/'images').mkdir(parents=True)
    Image.fromarray(spot()).save(tmp_path/'set'/'images'/'x_mask.png')
    with pytest.raises(BusiError, match='x_mask.png: is no result of this program'): predict_folder(data/'a', tmp_path/'set', dark, **kw)
    assert snapshot(tmp_path/'set').keys() == {'images/x_mask.png'}

def test_a_first_job_that_was_killed_is_not_taken_for_an_empty_folder(tmp_path, data, dark):
    predict_folder(data/'a', tmp_path/'out', dark)
    for name in ('results.csv', 'results.json'): (tmp_path/'out'/name).unlink()
    with pytest.raises(BusiError, match='holds results already'): predict_folder(data/'a', tmp_path/'out', dark)

def test_links_in_the_folder_of_results_are_not_followed(tmp_path, data, dark):
    out, mine = tmp_path/'out', tmp_path/'mine.csv'
    mine.write_text('mine')
    out.mkdir()
    for name in ('results.json', 'unreadable.csv', 'README.txt'): (out/name).symlink_to(mine)
    predict_folder(data/'a', out, dark)
    (out/'results.csv').unlink()
    (out/'results.csv').symlink_to(mine)
    predict_folder(data/'a', out, dark, resume=True)
    assert mine.read_text() == 'mine' and not any(p.is_symlink() for p in out.iterdir())

def test_two_jobs_do_not_share_a_folder(tmp_path, data, dark):
    from busi_unetpp.files import claim
    with claim(tmp_path/'out'), pytest.raises(BusiError, match='another process is writing there'): predict_folder(data/'a', tmp_path/'out', dark)

@pytest.mark.parametrize('damage', [dict(height='x'), dict(lesions=[1]), dict(lesions=[{}]), dict(spacing_mm=5), dict(uncertainty=None), dict(result=3, name=3), 5])
def test_a_record_with_wrong_fields_is_made_again(tmp_path, data, dark, damage):
    out = tmp_path/'out'
    predict_folder(data/'a', out, dark)
    whole, path = snapshot(out), out/'images'/'same.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | damage if isinstance(damage, dict) else damage))
    predict_folder(data/'a', out, dark, resume=True)
    assert snapshot(out) == whole

def test_a_name_may_equal_another_one_with_its_tag(tmp_path, dark):
    for d in ('a', 'b'): (tmp_path/'in'/d).mkdir(parents=True)
    paths = [tmp_path/'in'/d/'same.png' for d in ('a', 'b')]
    tags = predict_module._tags(paths)
    paths += [tmp_path/'in'/'a'/f'same-{tags[1]}.png', tmp_path/'in'/'b'/f'SAME-{tags[1]}.png']
    for i, p in enumerate(paths): Image.fromarray(spot(top=i)).save(p)
    table = predict_folder(tmp_path/'in', tmp_path/'out', dark)
    assert table.result.str.casefold().is_unique and len(table) == 4 == len(list((tmp_path/'out'/'images').glob('*.json')))

@pytest.mark.parametrize('stem', ['😀'*60, '漢'*80, 'x'*251, 'ä'*120])
def test_long_names_cost_nobody_the_job(tmp_path, dark, stem):
    (tmp_path/'in').mkdir()
    for name in (f'{stem[:62]}.png', 'b.png') if len(stem.encode()) > 251 else (f'{stem}.png', 'b.png'): Image.fromarray(spot()).save(tmp_path/'in'/name)
    table = predict_folder(tmp_path/'in', tmp_path/'out', dark)
    assert len(table) == 2 and all((tmp_path/'out'/f'{r}_probability.png').exists() for r in table.result)

EVIL = ['\x1b]0;title\x07\x1b[2J.png', '=cmd|calc!A1.png', '+1.png', 'a\rb.png', 'a\nb.png', '[red]x.png', '<script>.png', '\u202egnp.png']

def test_names_reach_tables_and_messages_harmless(tmp_path, dark, monkeypatch):
    (tmp_path/'in').mkdir()
    for i, name in enumerate(EVIL): Image.fromarray(spot(top=i)).save(tmp_path/'in'/name)
    (tmp_path/'in'/'\x1b[2Jbad.png').write_bytes(b'no image')
    monkeypatch.chdir(tmp_path/'in')
    table = predict_folder([*EVIL, '\x1b[2Jbad.png'], tmp_path/'out', dark)
    assert len(table) == len(EVIL) and '=cmd|calc!A1.png' in table.file.tolist() and len(table.attrs['unreadable']) == 1
    for path in (tmp_path/'out').rglob('*'):
        assert not set(path.name) & set('\x1b\x07\r\n<>|=\u202e')
        if path.suffix in ('.csv', '.json', '.txt'):
            text = path.read_text(encoding='utf-8')
            assert not set(text) & set('\x1b\x07\r\u202e'), path
            if path.suffix == '.csv':
                with path.open(newline='', encoding='utf-8') as f: rows = list(csv.reader(f))
                assert len({len(r) for r in rows}) == 1 and not any(cell[:1] in ('=', '+', '@') for r in rows for cell in r)
    assert not set(str(table.attrs['unreadable'])) & {'\x1b'}

def test_other_files_are_counted_by_kind(tmp_path, dark):
    (tmp_path/'in').mkdir()
    Image.fromarray(spot()).save(tmp_path/'in'/'a.png')
    for ending in ('webp', 'gif', 'jp2', 'jfif', 'ppm', 'tga'): Image.fromarray(spot()).save(tmp_path/'in'/f'b.{ending}', dict(jfif='jpeg').get(ending))
    for name in ('a.heic', 'b.heic', 'c.mp4', 'notes', '.hidden'): (tmp_path/'in'/name).write_bytes(b'x')
    table = predict_folder(tmp_path/'in', tmp_path/'out', dark)
    assert len(table) == 7 and not table.attrs['unreadable'] and (table.lesions == 1).all()
    assert table.attrs['others'] == {'.heic': 2, '.mp4': 1, 'without an ending': 1}
    assert json.loads((tmp_path/'out'/'results.json').read_text())['other_files'] == table.attrs['others']

def test_a_cd_export_is_predicted_and_its_other_objects_are_noted(tmp_path, dark):
    import pydicom
    (tmp_path/'cd'/'DICOM').mkdir(parents=True)
    write_dicom(tmp_path/'cd'/'DICOM'/'IM0001', np.stack([spot()]))
    for name, uid in (('DICOMDIR', '1.2.840.10008.1.3.10'), ('DICOM/SR0001', '1.2.840.10008.5.1.4.1.1.88.11'), ('DICOM/PR0001', '1.2.840.10008.5.1.4.1.1.11.1')):
        ds = pydicom.Dataset()
        ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = uid, '1.2.3', 'SR'
        ds.file_meta = pydicom.dataset.FileMetaDataset()
        ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID, ds.file_meta.TransferSyntaxUID = uid, '1.2.3', pydicom.uid.ExplicitVRLittleEndian
        ds.save_as(tmp_path/'cd'/name, enforce_file_format=True)
    table = predict_folder(tmp_path/'cd', tmp_path/'out', dark)
    assert len(table) == 1 and not table.attrs['unreadable'] and table.attrs['others'] == {'DICOM objects without an image': 3}
    with pytest.raises(BusiError, match='without a picture'): predict(tmp_path/'cd'/'DICOM'/'SR0001', dark)      # a file that is named is meant

@pytest.mark.parametrize('folder, pattern', [('[2024] study', '*.png'), ('a*b', '*.png'), ('x', '[2024] *.png'), ('[1]/[2]', '**/*.png')])
def test_glob_characters_in_real_names(tmp_path, dark, folder, pattern):
    (tmp_path/'in'/folder).mkdir(parents=True)
    Image.fromarray(spot()).save(tmp_path/'in'/folder/'[2024] 1.png')
    assert len(predict_folder(f"{tmp_path/'in'/folder}/{pattern}", tmp_path/'out', dark)) == 1

@pytest.mark.parametrize('args, why', [(dict(filters=[1]*400), 'up to 8'), (dict(filters=[9000]*5), 'up to 8'), (dict(filters=[4096]*8, bottleneck=4096), 'million weights'), (dict(encoder='hf-hub:a/b'), 'plain name'), (dict(growth=1e9), 'growth')])
def test_one_check_of_networks_for_all_readers(tmp_path, monkeypatch, tiny, args, why):
    from busi_unetpp import checkpoint
    from busi_unetpp.checkpoint import load_weights
    def built(**kw): raise AssertionError('the network was built')
    path = save_model(tmp_path/'m.safetensors', tiny, args)
    real = checkpoint.build_unetpp
    def on_meta(**kw):
        net = real(**kw)
        assert next(net.parameters()).device.type == 'meta', 'the network was built'
        return net
    monkeypatch.setattr(checkpoint, 'build_unetpp', on_meta)
    for load in (load_model, load_weights):
        with pytest.raises(BusiError, match=why) as e: load(path)
        assert str(path) in str(e.value)

def test_probabilities_differ_by_a_level_with_the_batch_and_masks_do_not(tmp_path, tiny):
    "What `predict` killed and run again relies on: the composition of a batch changes the last bits only."
    rng = np.random.default_rng(0)
    (tmp_path/'in').mkdir()
    for i in range(7): Image.fromarray(rng.integers(0, 256, (60 + i, 70), dtype=np.uint8)).save(tmp_path/'in'/f'{i}.png')
    tables = [predict_folder(tmp_path/'in', tmp_path/f'out{b}', tiny, batch_size=b) for b in (1, 2, 7)]
    for r in tables[0].result:
        masks, levels = ([np.asarray(Image.open(tmp_path/f'out{b}'/f'{r}_{kind}.png')).astype(int) for b in (1, 2, 7)] for kind in ('mask', 'probability'))
        assert all((m == masks[0]).all() for m in masks) and max(abs(p - levels[0]).max() for p in levels) <= 1
