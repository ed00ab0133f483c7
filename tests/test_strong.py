"Judging runs: scores that prediction reproduces, a flag from the validation part, and a log of trials without test scores."
import json
import shutil

import pytest

from busi_unetpp.compare import read_scores
from busi_unetpp.dataset import BusiError, read_busi
from busi_unetpp.phantom import make_phantom
from busi_unetpp.predict import load_model, predict, ship_run
from busi_unetpp.run import train_run
from busi_unetpp.strong import judge, main, read_trials

@pytest.fixture(scope='module')
def judged(tmp_path_factory):
    "A tiny run on the phantom with a validation part, and its judgement."
    folder = tmp_path_factory.mktemp('strong')
    data = make_phantom(folder/'phantom', n=60, seed=1)
    run = train_run(data, folder/'runs'/'tiny', 'demo', epochs=4, size=48, lr=3e-3, split='kfold', model=dict(filters=(6, 8), bottleneck=12, n_heads=1))
    return folder, data, run, judge([run], folder/'judged', command='as a test')

def test_what_a_judgement_holds(judged):
    folder, data, run, found = judged
    scores = read_scores(folder/'judged')
    assert found['test']['images'] == len(scores)
    assert found['test']['image_dice_with_tumor'] == pytest.approx(scores[scores.area > 0].dice.mean())
    stored = json.loads((folder/'judged'/'judgement.json').read_text())
    assert stored['command'] == 'as a test' and stored['versions']['torch'] and stored['seeds'] == [42] and str(folder) not in json.dumps(stored)

def test_the_shipped_file_predicts_what_was_scored(judged):
    folder, data, run, found = judged
    model = load_model(ship_run(run, folder/'tiny.safetensors', folder/'judged'), 'cpu')
    assert (model.threshold, model.smallest, model.flag) == (.5, found['smallest'], found['flag']['threshold'])
    scores, df = read_scores(folder/'judged').set_index('image'), read_busi(data).set_index('image')
    for image, s in scores.iterrows():
        assert predict(df.image_path[image], model).mask.sum() == pytest.approx(s.tp + s.fp, abs=.02*(s.tp + s.fp + s.fn) + 5)   # half precision

def test_the_log_of_trials_never_looks_at_the_test_part(judged, capsys):
    folder, data, run, found = judged
    metrics = json.loads((run/'metrics.json').read_text())
    log = read_trials(run.parent)
    assert log.dice.tolist() == [metrics['valid']['image_dice_with_tumor']] and log.changed.tolist() == ['nothing']
    path = run/'metrics.json'
    path.write_text(json.dumps({k: v for k, v in metrics.items() if k != 'test'}))
    try: assert read_trials(run.parent).equals(log)
    finally: path.write_text(json.dumps(metrics))
    main(str(run.parent), str(folder/'trials.csv'), trials=True)
    assert (folder/'trials.csv').read_text().startswith('trial,changed,')

def test_what_is_refused(judged):
    folder, data, run, found = judged
    with pytest.raises(BusiError, match='judges tiny, not other'):
        other = run.rename(run.with_name('other'))
        try: ship_run(other, folder/'x.safetensors', folder/'judged')
        finally: other.rename(run)
    with pytest.raises(BusiError, match='no judgement|cannot be read'): ship_run(run, folder/'x.safetensors', folder/'nowhere')
    bare = shutil.copytree(run, folder/'bare')
    (bare/'split.csv').write_text((bare/'split.csv').read_text().replace('valid', 'train'))
    with pytest.raises(BusiError, match='no validation images'): judge([bare], folder/'never')
    with pytest.raises(BusiError, match='not a run'): judge([folder/'phantom'], folder/'never')
    with pytest.raises(SystemExit, match='no finished run'): main(str(folder/'phantom'), str(folder/'t.csv'), trials=True)
    assert not (folder/'never').exists() and not (folder/'x.safetensors').exists()
