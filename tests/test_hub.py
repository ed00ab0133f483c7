"A model goes to a folder and comes back; what is damaged, foreign or a pickle is refused by name."
import json
import pickle
import shutil
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import ModelCard

from busi_unetpp import hub
from busi_unetpp.checkpoint import save_weights
from busi_unetpp.dataset import BusiError
from busi_unetpp.encoder import build_unetpp
from busi_unetpp.hub import HubModel
from busi_unetpp.predict import load_model

NETWORK = dict(filters=[4, 6], bottleneck=8, presence=True)


@pytest.fixture(scope='module')
def model():
    torch.manual_seed(0)
    return HubModel(NETWORK, 48, .35, 1.4, .2, 'small', dict(test=dict(tumor_dice=.75)))


@pytest.fixture(scope='module')
def saved(model, tmp_path_factory):
    path = tmp_path_factory.mktemp('hub')/'small'
    model.save_pretrained(path)
    return path


@pytest.fixture
def folder(saved, tmp_path): return shutil.copytree(saved, tmp_path/'copy')


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*a, **k): raise AssertionError('the network was asked')
    monkeypatch.setattr('socket.socket.connect', refuse)


def test_round_trip(model, saved):
    again, image = HubModel.from_pretrained(saved), torch.randint(0, 256, (60, 90), dtype=torch.uint8)
    with torch.no_grad(): assert torch.equal(again(image), model(image))
    assert not again.training
    for k in ('network', 'size', 'threshold', 'smallest', 'temperature', 'flag', 'name', 'card', 'data'): assert getattr(again, k) == getattr(model, k), k
    assert sorted(p.name for p in saved.iterdir()) == ['README.md', 'config.json', 'model.safetensors']
    plain = load_model(saved, 'cpu')                                   # the package's own format
    assert (plain.size, plain.threshold, plain.temperature, plain.flag, plain.card) == (48, .35, 1.4, .2, dict(test=dict(tumor_dice=.75)))


def test_configuration_can_be_changed_on_the_way_in(saved):
    assert HubModel.from_pretrained(saved, threshold=.6).threshold == .6


def test_card_says_what_it_is_for_and_what_not(saved, model):
    card = ModelCard.load(saved/'README.md')
    assert card.data.license == 'apache-2.0' and card.data.library_name == 'busi-unetpp' and 'ultrasound' in card.data.tags
    for part in ('not a medical device', '| test.tumor_dice | 0.75 |', 'One hospital', '10.1016/j.dib.2019.104863', '48 x 48', 'above 0.35', '## Limitations'): assert part in card.text, part
    assert 'treat it as untested' not in card.text
    simulated = HubModel(NETWORK, 48, data='Simulated images.').generate_model_card().text
    assert 'treat it as untested' in simulated and 'BUSI, whose authors' not in simulated and 'One hospital' not in simulated


class Bomb:
    def __reduce__(self): return exec, ("raise SystemExit('the pickle ran')",)


@pytest.mark.parametrize('name', ['pytorch_model.bin', 'model.pt', 'model.pth', 'last.ckpt', 'model.pkl'])
def test_pickle_is_refused_and_does_not_run(folder, name):
    (folder/'model.safetensors').unlink()
    (folder/name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(BusiError, match=f'{name}, a pickle'): HubModel.from_pretrained(folder)


def test_pickle_under_a_false_name_is_refused_and_does_not_run(folder):
    (folder/'model.safetensors').write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(BusiError, match='not a model that can be used'): HubModel.from_pretrained(folder)


def test_pickle_beside_the_weights_is_not_touched(folder):
    (folder/'pytorch_model.bin').write_bytes(pickle.dumps(Bomb()))
    assert HubModel.from_pretrained(folder).name == 'small'


def test_only_safetensors_and_config_are_asked_of_a_repository(monkeypatch, saved):
    asked = []
    def fetch(repo_id, filename, **kwargs):
        asked.append((repo_id, filename))
        return str(saved/filename)
    monkeypatch.setattr(hub, 'hf_hub_download', fetch)
    monkeypatch.setattr('huggingface_hub.hub_mixin.hf_hub_download', fetch)
    assert HubModel.from_pretrained('somebody/model').name == 'small'
    assert asked == [('somebody/model', 'config.json'), ('somebody/model', 'model.safetensors')]


def test_push_sends_the_three_files(model, monkeypatch):
    sent = {}
    monkeypatch.setattr('huggingface_hub.HfApi.create_repo', lambda self, repo_id, **k: SimpleNamespace(repo_id=repo_id))
    monkeypatch.setattr('huggingface_hub.HfApi.upload_folder', lambda self, repo_id, folder_path, **k: sent.update(repo=repo_id, files=sorted(p.name for p in folder_path.iterdir())))
    model.push_to_hub('somebody/model')
    assert sent == dict(repo='somebody/model', files=['README.md', 'config.json', 'model.safetensors'])


def change(folder, **values): (folder/'config.json').write_text(json.dumps({**json.loads((folder/'config.json').read_text()), **values}))


@pytest.mark.parametrize('values,message', [
    (dict(size='large'), 'size'), (dict(size=20), 'size 20'), (dict(threshold=-1), 'threshold -1'), (dict(temperature=0), 'temperature 0'), (dict(threshold='x'), 'threshold'), (dict(flag=7), 'flag 7'), (dict(flag=True), 'flag True'),
    (dict(network=[1]), 'network'), (dict(network=dict(layers=2)), 'no U-Net'), (dict(network=dict(filters=[10**7]*3)), 'network'),
    (dict(network=dict(encoder='hf-hub:a/b')), 'plain name'), (dict(network=dict(encoder='local-dir:/etc')), 'plain name'),
    (dict(network=dict(NETWORK, bottleneck=16)), 'copy')], ids=str)
def test_bad_configuration_is_refused(folder, values, message):
    change(folder, **values)
    with pytest.raises(BusiError, match=message): HubModel.from_pretrained(folder)


def test_missing_and_damaged_files_are_named(folder, tmp_path):
    with pytest.raises(BusiError, match='no such folder'): HubModel.from_pretrained(tmp_path/'nothing')
    weights = (folder/'model.safetensors').read_bytes()
    (folder/'model.safetensors').write_bytes(weights[:-40])
    with pytest.raises(BusiError, match='model.safetensors'): HubModel.from_pretrained(folder)
    (folder/'model.safetensors').write_bytes(weights)
    (folder/'config.json').write_text('{')
    with pytest.raises(BusiError, match='copy: not a model'): HubModel.from_pretrained(folder)
    (folder/'config.json').unlink()
    with pytest.raises(BusiError, match='copy: not a model'): HubModel.from_pretrained(folder)


def test_weights_of_another_network_do_not_load_in_part(folder):
    save_weights(folder/'model.safetensors', build_unetpp(filters=[4], bottleneck=8), dict(filters=[4], bottleneck=8))
    with pytest.raises(BusiError): HubModel.from_pretrained(folder)


def test_model_file_becomes_one_of_the_hub(model, saved):
    made, image = hub.to_hub_model(saved), torch.randint(0, 256, (50, 70), dtype=torch.uint8)
    with torch.no_grad(): assert torch.equal(made(image), model(image))
    assert (made.network, made.flag, made.card, made.name) == (NETWORK, .2, dict(test=dict(tumor_dice=.75)), 'small')


@pytest.mark.parametrize('network, why', [(dict(filters=[1]*400), 'up to 8'), (dict(filters=[9000]*5), 'up to 8'), (dict(filters=[4096]*8, bottleneck=4096), 'million weights'), (dict(encoder='hf-hub:a/b'), 'plain name'),
    (dict(NETWORK, bottleneck=4000), 'needs'), (None, 'network'), (dict(smp='../x'), 'plain name')])
def test_a_configuration_is_checked_before_anything_is_built(folder, monkeypatch, network, why):
    from busi_unetpp import hub
    monkeypatch.setattr(hub, 'build_unetpp', lambda **kw: pytest.fail('the network was built'))
    change(folder, network=network)
    with pytest.raises(BusiError, match=why): HubModel.from_pretrained(folder)


@pytest.mark.parametrize('values', [dict(name=5), dict(card=[1]), dict(data=7), dict(size=None), dict(points=5), dict(threshold='x')])
def test_wrong_types_in_a_configuration_are_one_message(folder, values):
    change(folder, **values)
    with pytest.raises(BusiError): HubModel.from_pretrained(folder)


def test_the_card_takes_no_name_raw(tmp_path):
    evil = '<script>alert(1)</script>\n# Heading [x](http://y)\x1b[2J'
    model = HubModel(NETWORK, 48, name=evil, card={evil: 1., 'a': evil})
    model.save_pretrained(tmp_path)
    text = (tmp_path/'README.md').read_text(encoding='utf-8')
    assert '<script>' not in text.replace('\\<script\\>', '') and '\x1b' not in text and '\n# Heading' not in text and '[x](' not in text.replace('\\[x\\](', '')
