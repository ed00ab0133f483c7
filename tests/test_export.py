"The exported file: same numbers as the package, any size, no code and no paths in it, and readable refusals."
import importlib.util
import json
import zipfile
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from busi_unetpp import export, run
from busi_unetpp.dataset import BusiError
from busi_unetpp.encoder import build_unetpp
from busi_unetpp.learner import overfit_one_batch
from busi_unetpp.phantom import make_phantom
from busi_unetpp.predict import Model, load_model, predict

needs_onnx = pytest.mark.skipif(not all(map(importlib.util.find_spec, ('onnx', 'onnxscript', 'onnxruntime'))), reason="onnx is missing, so ONNX files are NOT tested: pip install -e '.[export]'")


def tiny(**changes):
    torch.manual_seed(1)
    net = build_unetpp(filters=(4, 6), bottleneck=8, deep_supervision=True, presence=True).eval()
    with torch.no_grad():
        for head in net.heads.values(): head.weight *= 5
        net.presence.bias += 3
    return Model(**{**dict(net=net, size=48, temperature=1.5, threshold=.6, name='tiny'), **changes})


def pictures(*shapes): return [np.asarray(Image.fromarray(np.random.default_rng(i).integers(0, 256, (9, 11), dtype=np.uint8)).resize(s[::-1], Image.Resampling.BICUBIC)) for i, s in enumerate(shapes)]


@pytest.fixture(scope='module')
def model(): return tiny()


@pytest.fixture(scope='module')
def onnx_file(model, tmp_path_factory): return export.export_onnx(model, tmp_path_factory.mktemp('onnx')/'deep'/'tiny.onnx')


@pytest.mark.parametrize('n,m', [(1, 5), (7, 7), (562, 196), (100, 256), (1023, 48), (48, 1023)])
def test_weights_are_pillows(n, m):
    weights = export.triangle_weights(n, m)
    ours = (weights/weights.sum(1, keepdim=True)).numpy()
    pillow = np.stack([np.asarray(Image.fromarray(row[None]).resize((m, 1), Image.Resampling.BILINEAR))[0] for row in np.eye(n, dtype=np.float32)], axis=1)
    assert ours.shape == (m, n) and np.abs(ours - pillow).max() < 1e-6
    assert (weights == weights.round()).all()


@pytest.mark.parametrize('shape', [(471, 562), (300, 200), (17, 23), (90, 500), (500, 90)])
def test_gray_levels_are_pillows_but_for_rounding(shape):
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    pillow = np.asarray(Image.fromarray(image).resize((64, 64), Image.Resampling.BILINEAR)).astype(int)
    ours = export.resize(torch.tensor(image)[None].float(), 64, 64, whole=True)[0].numpy()
    assert np.abs(ours - pillow).max() <= 1
    if shape[0] < shape[1]: assert (ours != pillow).mean() < .01


def test_deployed_takes_one_image_or_several_and_changes_nothing(model):
    images, before = torch.randint(0, 256, (3, 60, 80), dtype=torch.uint8), [p.clone() for p in model.net.parameters()]
    deployed = export.Deployed(model.net, model.size, model.temperature)
    with torch.no_grad():
        together = deployed(images)
        assert together.shape == images.shape and together.dtype == torch.float32 and 0 <= together.min() < together.max() <= 1
        torch.testing.assert_close(deployed(images[1]), together[1], rtol=0, atol=1e-5)
    assert all((a == b).all() for a, b in zip(before, model.net.parameters()))


@needs_onnx
def test_onnx_agrees_on_every_size(model, onnx_file):
    images = pictures((471, 562), (64, 300), (48, 48), (16, 16), (200, 201))
    table = export.check_onnx(onnx_file, model, images)
    for image in images:
        with torch.no_grad(): presence = export.Deployed(model.net, model.size, presence=True)(torch.tensor(image))[1]
        assert export.open_onnx(onnx_file).run(['presence'], {'images': image[None]})[0] == pytest.approx(presence.item(), abs=1e-4)
    assert table[['height', 'width']].to_numpy().tolist() == [list(i.shape) for i in images]
    assert (table.runtime < 1e-4).all() and (table.package < .02).all() and (table['mask'] < .005).all()
    session = export.open_onnx(onnx_file)
    both = session.run(None, {'images': np.stack([images[0], images[0][::-1]])})[0]
    np.testing.assert_allclose(both[0], session.run(None, {'images': images[0][None]})[0][0], atol=1e-5)
    assert np.abs(both[0] - both[1]).max() > .01


@needs_onnx
def test_check_notices_another_network(model, onnx_file):
    torch.manual_seed(5)
    other = tiny(net=build_unetpp(filters=(4, 6), bottleneck=8))
    assert (export.check_onnx(onnx_file, other, pictures((60, 80))).runtime > .01).all()


@needs_onnx
def test_onnx_file_says_what_it_is_and_nothing_else(model, onnx_file):
    import onnx
    proto = onnx.load(onnx_file)
    onnx.checker.check_model(proto, full_check=True)
    assert [(o.domain, o.version) for o in proto.opset_import if o.domain == ''] == [('', export.OPSET)]
    facts = {p.key: p.value for p in proto.metadata_props}
    assert 'not a medical device' in facts['notice'] and (facts['size'], facts['threshold'], facts['temperature'], facts['name']) == ('48', '0.6', '1.5', 'tiny')
    assert not any(word in onnx_file.read_bytes() for word in (b'unetpp.py', b'site-packages', str(export.__file__).encode()))
    assert {n.domain for n in proto.graph.node} <= {'', 'ai.onnx'}          # standard operators only
    assert [p.name for p in onnx_file.parent.iterdir()] == ['tiny.onnx']


def test_failed_export_keeps_the_old_file(model, tmp_path, monkeypatch):
    path = tmp_path/'m.pt2'
    path.write_bytes(b'old')
    def full(*a, **k): raise OSError(28, 'No space left on device')
    monkeypatch.setattr('os.replace', full)
    with pytest.raises(BusiError, match='the disk is full'): export.export_torch(model, path)
    assert path.read_bytes() == b'old' and len([*tmp_path.iterdir()]) == 1


@needs_onnx
@pytest.mark.parametrize('content', [None, b'', b'\x80\x04garbage', b'GIF89a'])
def test_unusable_onnx_file_is_named(tmp_path, content):
    path = tmp_path/'bad.onnx'
    if content is not None: path.write_bytes(content)
    with pytest.raises(BusiError, match='bad.onnx: not an ONNX file'): export.open_onnx(path)


def test_missing_package_is_named(model, tmp_path, monkeypatch):
    monkeypatch.setattr(export, 'find_spec', lambda name: None)
    for call in (lambda: export.export_onnx(model, tmp_path/'a.onnx'), lambda: export.open_onnx('a.onnx'), lambda: export.benchmark_speed(model, tmp_path)):
        with pytest.raises(BusiError, match=r"is not installed.*pip install"): call()
    assert not [*tmp_path.iterdir()]


def test_torch_export_agrees_and_tells_no_paths(model, tmp_path):
    path = export.export_torch(model, tmp_path/'tiny.pt2')
    extra = dict(notice='', size='', name='', threshold='', smallest='')
    program = torch.export.load(path, extra_files=extra)
    assert extra == dict(notice=export.NOTICE, size='48', name='tiny', threshold='0.6', smallest='0.0')
    deployed = export.Deployed(model.net, model.size, model.temperature)
    for image in pictures((70, 110), (48, 48)):
        with torch.no_grad():
            probs, presence = program.module()(torch.tensor(image)[None])
            torch.testing.assert_close(probs[0], deployed(torch.tensor(image)), rtol=0, atol=1e-5)
            torch.testing.assert_close(presence, export.Deployed(model.net, model.size, presence=True)(torch.tensor(image)[None])[1])
    with zipfile.ZipFile(path) as z: assert not any(b'unetpp.py' in z.read(n) for n in z.namelist())


def test_timing_takes_turns_and_leaves_the_first_round_out():
    calls, naps = [], iter([.2])
    def runner(name):
        def run(images):
            calls.append((name, len(images)))
            if name == 'a' and len(images) == 1: export.time.sleep(next(naps, .001))
        return run
    table = export.time_runners(dict(a=runner('a'), b=runner('b')), (16, 16), batch=4, repeat=2).set_index('name')
    assert calls == [('a', 1), ('a', 4), ('b', 1), ('b', 4)]*3
    assert 1 <= table.latency.a < 100                                        # the slow first call does not count


@needs_onnx
def test_speed_table_compares_within_a_runtime(model, tmp_path, monkeypatch):
    pytest.importorskip('segmentation_models_pytorch')
    made = []
    monkeypatch.setattr(export, 'export_onnx', lambda m, path: made.append(m.name) or path)
    monkeypatch.setattr(export, 'as_runners', lambda m, path, threads: dict(PyTorch=m.name, onnxruntime=m.name))
    monkeypatch.setattr(export, 'time_runners', lambda runners, **k: export.pd.DataFrame([dict(name=n, latency=t, throughput=1000/t) for n, t in zip(runners, (10., 5., 40., 15.))]))
    threads = torch.get_num_threads()
    table = export.benchmark_speed(model, tmp_path, threads=1)
    assert torch.get_num_threads() == threads and made == ['tiny', 'smp-resnet34']
    assert table.latency_ratio.tolist() == [4, 3, 1, 1] and table.throughput_ratio.round(9).tolist() == [4, 3, 1, 1]


def test_rival_is_trained_stored_and_read_back(tmp_path, monkeypatch):
    smp = pytest.importorskip('segmentation_models_pytorch')
    monkeypatch.setattr(run, 'overfit_one_batch', lambda learn: overfit_one_batch(learn, seconds=.1))
    monkeypatch.setattr(export, 'train_run', partial(run.train_run, size=64, epochs=1, split='grouped'))
    out = tmp_path/'smp'
    export.main(make_phantom(tmp_path/'data', n=24), train=out, network='smp')
    config = json.loads((out/'config.json').read_text())
    assert config['recipe']['model'] == dict(smp='resnet34') and config['recipe']['pretrained'] == 'none'
    assert config['command'] == 'python -m busi_unetpp.export --train smp --network smp'
    found = load_model(out)
    assert isinstance(found.net, smp.UnetPlusPlus)
    assert predict(pictures((70, 50))[0], found).mask.shape == (70, 50)
    with pytest.raises(BusiError, match='there is smp, ours'): export.train_rival(tmp_path/'other', 'unet')
    assert not (tmp_path/'other').exists()


def test_record_has_its_circumstances():
    record = json.loads((export.Path(__file__).parents[1]/'nbs'/'records'/'speed.json').read_text())
    assert {'command', 'date', 'threads', 'device', 'versions', 'commit', 'load', 'opset', 'check', 'speed'} <= set(record)
    assert {'torch', 'onnxruntime', 'segmentation_models_pytorch'} <= set(record['versions'])
    assert record['check']['images'] >= 30 and record['check']['runtime'] < 1e-3
