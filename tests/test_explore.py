"The explorer without a browser: pictures and numbers, callbacks driven by setting values, and what is said of bad input."
import base64
import io
import re
import shutil
import subprocess
import sys
import time
from datetime import datetime
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

W = pytest.importorskip('ipywidgets', reason="ipywidgets is missing, so the explorer is NOT tested: pip install -e '.[dev]'")
from busi_unetpp import explore
from busi_unetpp.dataset import BusiError
from busi_unetpp.explore import (APART, MERGED, MEDIUM, THRESHOLDS, Browser, Entry, Explorer, Inspector, Message, Own, Predictor, at, describe, download_link, draw_case, draw_map,
    draw_masks, fit, guarded, keep_upload, lesion_groups, make_case, mask_choices, model_names, open_dataset, outline, png, read_entry, score_text, threshold_scores)
from busi_unetpp.images import Frame


class Simulated(Predictor):
    "Answers like a network, without one: brighter pixels are less likely tumor."
    asked = 0

    def load(self, name):
        if name in ('a', 'b'): self.models[name] = name
        return super().load(name)

    def __call__(self, frame, choice):
        self.load((choice or '').removesuffix(explore.ONE_VIEW))
        self.asked += 1
        p = (1 - frame.pixels/255).astype(np.float32)
        if choice == 'b': p = p**2
        return SimpleNamespace(frame=frame, image=frame.pixels, name=str(frame), spacing_mm=frame.spacing_mm, probability=p, uncertainty=p*(1 - p)*4, score=.3, presence=None, silenced=False, flag=None, mask=p > .5)


@pytest.fixture
def simulated(monkeypatch): monkeypatch.setattr(explore, 'Predictor', Simulated)

@pytest.fixture
def app(simulated, small_phantom): return Explorer(small_phantom, models=['a', 'b'])

@pytest.fixture
def case():
    rng = np.random.default_rng(1)
    true = np.zeros((471, 562), bool)
    true[100:300, 150:400] = True
    p = np.clip(np.where(true, .7, .3) + rng.normal(0, .2, true.shape), 0, 1).astype(np.float32)
    frame = Frame('x.png', (255*(1 - p)).astype(np.uint8), (.1, .2))
    return make_case(SimpleNamespace(frame=frame, image=frame.pixels, name='x.png', spacing_mm=frame.spacing_mm, probability=p, uncertainty=p, score=.3, presence=None, silenced=False, flag=None), true)

def upload(own, name, content):
    own.upload.value = ({'name': name, 'content': memoryview(content), 'size': len(content), 'type': '', 'last_modified': datetime.now()},)


# --- pictures and numbers

@pytest.mark.parametrize('shape', [(20, 900), (900, 20), (300, 400), (16, 16), (288, 400)])
@pytest.mark.parametrize('dtype', [np.uint8, np.float32, bool])
def test_fit_fills_one_direction_and_keeps_the_type(shape, dtype):
    out = fit(np.ones(shape, dtype))
    assert out.shape == MEDIUM[::-1] and out.dtype == dtype
    rows, cols = (out > 0).any(1).sum(), (out > 0).any(0).sum()
    assert rows == MEDIUM[1] or cols == MEDIUM[0]
    assert rows/cols == pytest.approx(shape[0]/shape[1], rel=.2)


def test_scores_of_every_threshold_are_the_obvious_ones(case):
    p, scores = case.prediction.probability, case.scores
    true = np.zeros(p.shape, bool)
    true[100:300, 150:400] = True
    for i, t in enumerate(THRESHOLDS):
        found = p > t
        assert scores.area.iloc[i] == found.sum()
        assert scores.dice.iloc[i] == pytest.approx(2*(found & true).sum()/(found.sum() + true.sum()))
        assert scores.iou.iloc[i] == pytest.approx((found & true).sum()/(found | true).sum())


def test_probabilities_equal_to_a_threshold_are_not_above_it():
    p = np.tile(THRESHOLDS, (2, 1))
    assert threshold_scores(p).area.tolist() == [2*(98 - i) for i in range(99)]
    assert [at(float(t)) for t in THRESHOLDS] == list(range(99)) and at(0) == 0 and at(1) == 98


def test_empty_masks_follow_the_rule_of_the_metrics():
    nothing, p = np.zeros((20, 20), bool), np.zeros((20, 20), np.float32)
    assert threshold_scores(p, nothing).dice.eq(1).all()
    p[0, 0] = .8
    table = threshold_scores(p, nothing)
    assert table.dice.iloc[at(.5)] == 0 and table.dice.iloc[at(.9)] == 1


def test_outlines_have_the_colors_of_mask_and_prediction(case):
    a = draw_case(case, .5)
    for color in ((0xE6, 0x9F, 0), (0x56, 0xB4, 0xE9)): assert (a == color).all(2).sum() > 200
    assert not (draw_case(make_case(case.prediction), .5) == (0xE6, 0x9F, 0)).all(2).any(), 'no mask, no orange'
    assert not (draw_case(case, .99) == (0x56, 0xB4, 0xE9)).all(2).sum() > 200
    case.probability[:] = 0
    assert not (draw_case(case, .5) == (0x56, 0xB4, 0xE9)).all(2).any()


def test_masks_together_apart_and_alone():
    image, masks = np.full((60, 80), 50, np.uint8), np.zeros((2, 60, 80), bool)
    masks[0, 5:25, 5:25] = masks[1, 30:50, 40:70] = True
    def colors(choice, opacity=0): return {tuple(c) for c in draw_masks(image, list(masks), choice, opacity).reshape(-1, 3)}
    assert len(colors(MERGED)) == 2 and len(colors(APART)) == 3 and len(colors(MERGED, .5)) == 3
    alone = (draw_masks(image, list(masks), mask_choices(2)[2], 1.) != 50).any(2)
    assert (alone == masks[0]).all()
    assert not outline(masks[0], 2)[15, 15] and outline(masks[0], 2)[6, 15]


def test_maps_do_not_wrap_around():
    a = draw_map(np.array([[-1, 0, 1, 2.]]*20, np.float32))
    assert (a[0, 0] == a[0, 1]).all() and (a[0, 2] == a[0, 3]).all() and a[0, 2].sum() > 500 > 20 > a[0, 0].sum()


def test_statistics_of_an_image():
    masks = [np.zeros((40, 50), bool) for _ in range(2)]
    masks[0][5:10, 5:10] = masks[1][20:30, 20:30] = True
    facts = describe(Entry('benign/x.png', 'benign', None, np.zeros((40, 50), np.uint8), masks, ()))
    assert facts == {'Class': 'benign', 'Size': '50 x 40 pixels', 'Masks': '2', 'Lesions': '2', 'Tumor': '125 pixels', 'Share': '6.2%', 'Each mask': '25, 100 pixels', 'Same lesion in': 'no other image'}
    assert 'Same lesion in' not in describe(Entry('x', 'benign', None, np.zeros((40, 50), np.uint8), masks, None))


def test_groups_belong_to_busi_only(small_phantom, tmp_path):
    from busi_unetpp.duplicates import busi_groups
    df = open_dataset(small_phantom)[0]
    assert set(df.image) <= set(busi_groups().image), 'the names alone cannot tell them apart'
    assert lesion_groups(df, small_phantom) is None
    groups = lesion_groups(df, tmp_path)   # a folder that is no phantom
    table = busi_groups().set_index('image').group
    twins = table[table.duplicated(keep=False)]
    assert set(groups[twins.index[0]]) == set(table.index[table == twins.iloc[0]]) - {twins.index[0]}


def test_the_mask_that_is_downloaded_has_the_size_of_the_image(case):
    link = download_link(case.prediction, .6)
    mask = np.asarray(Image.open(io.BytesIO(base64.b64decode(re.search('base64,([^"]+)"', link)[1]))))
    assert 'download="x_mask.png"' in link and (mask == 255*(case.prediction.probability > THRESHOLDS[at(.6)])).all()
    case.prediction.frame = Frame('a"><script>.png', case.prediction.image)
    assert '<script>' not in download_link(case.prediction, .6)


def test_area_in_square_millimeters_where_the_file_says(case):
    assert f"{case.scores.area.iloc[at(.5)]*.02:.0f} mm²" in score_text(case, .5)
    case.prediction.spacing_mm = None
    assert 'mm²' not in score_text(case, .5)


def test_uploads_cannot_leave_their_folder(tmp_path):
    for name in ('../../x.png', '/etc/x.png', '..\\..\\x.png'):
        assert keep_upload(dict(name=name, content=b'1'), tmp_path) == tmp_path/'x.png'
    assert keep_upload(dict(name='', content=b''), tmp_path).parent == tmp_path


# --- widgets

def test_next_previous_filter_and_search(app):
    nav, df = app.navigator, app.navigator.df
    assert nav.position.value == '1 of 16'
    nav.next.click()
    assert app.entry.name == df.image[1] == app.browser.entry.name
    nav.previous.click(), nav.previous.click()
    assert app.entry.name == df.image[15], 'round and round'
    nav.label.value = 'malignant'
    assert nav.position.value == '1 of 4' and app.entry.label == 'malignant'
    nav.search.value = 'NO SUCH'
    assert app.entry is None and nav.position.value == 'no image' and app.browser.facts.value == ''
    nav.next.click()
    nav.search.value, nav.label.value = '(1)', 'all'
    assert {n for _, n in nav.image.options} == {n for n in df.image if '(1)' in n}
    assert app.entry.name == 'malignant/malignant (1).png', 'what is shown stays if it passes the filters'


def test_browser_moves_with_its_controls(app):
    b = app.browser
    b.show(read_entry(next(app.navigator.df[app.navigator.df.mask_paths.map(len) > 1].itertuples())))
    seen = [b.picture.value]
    for b.masks.value in b.masks.options[1:]: seen.append(b.picture.value)
    b.opacity.value = .9
    assert len({*seen, b.picture.value}) == len(seen) + 1


def test_inspector_moves_and_only_thresholds(app):
    assert app.inspector.entry is None, 'nothing is predicted before it is looked at'
    app.navigator.search.value = 'benign'
    app.tabs.selected_index = 1
    s, asked = app.inspector.sides, app.inspector.predictor.asked
    assert asked == 2 and [x.model.value for x in s] == ['a', 'a' + explore.ONE_VIEW]
    s[1].model.value = 'b'
    seen = set()
    for app.inspector.threshold.value in (.1, .5, .9): seen.add((s[0].picture.value, s[0].numbers.value, s[1].picture.value, s[1].numbers.value))
    assert all(len(set(column)) == 3 for column in zip(*seen)) and s[0].numbers.value != s[1].numbers.value
    assert app.inspector.predictor.asked == asked + 1, 'the slider asks no network'
    s[1].model.value = ''
    assert s[1].case is None and s[1].numbers.value == '' and 'Dice' in s[0].numbers.value


@pytest.mark.parametrize('shape', [(471, 562), (1000, 1000)])
def test_a_step_takes_less_than_a_tenth_of_a_second(shape, app, tmp_path):
    "Processor time, which a busy machine does not stretch; two models beside each other, at the largest sizes of BUSI."
    image = np.random.default_rng(0).integers(0, 255, shape, np.uint8)
    Image.fromarray(image).save(tmp_path/'x.png')
    app.inspector.show(Entry('benign/x.png', 'benign', tmp_path/'x.png', image, [image > 200]))
    app.own.path.value = str(tmp_path/'x.png')
    for slider in (app.inspector.threshold, app.own.threshold):
        times = []
        for t in np.arange(.02, .98, .1):
            start = time.process_time()
            slider.value = float(t)
            times.append(time.process_time() - start)
        assert np.median(times) < .1, times


# --- what is said of bad input

def test_bad_folders_are_named_and_the_dataset_stays(app, tmp_path):
    before = app.entry.name
    for path, words in {str(tmp_path): 'no BUSI dataset here', '/no/such/folder': 'no such folder', __file__: 'no such folder', '\0': ''}.items():
        app.navigator.folder.value = path
        assert app.message.text and words in app.message.text and 'Traceback' not in app.message.text
        assert app.entry.name == before and len(app.navigator.df) == 16


def test_faulty_files_of_a_dataset_are_named(simulated, small_phantom, tmp_path):
    data = tmp_path/'data'
    shutil.copytree(small_phantom, data)
    (data/'benign'/'benign (2).png').write_bytes(b'no picture')
    cut = data/'benign'/'benign (1).png'
    cut.write_bytes(cut.read_bytes()[:-3000])
    app = Explorer(data, models=['a'])
    assert 'benign (2).png' in app.message.text and len(app.navigator.df) == 15
    app.navigator.next.click()
    app.navigator.previous.click()
    assert app.entry is None and 'benign (1).png' in app.message.text and 'truncated' in app.message.text
    app.navigator.next.click()
    assert app.entry.name == 'benign/benign (3).png' and app.message.text == ''


def test_a_folder_that_cannot_be_read_at_the_start(simulated):
    app = Explorer('/no/such/folder', models=['a'])
    assert 'no such folder' in app.message.text and app.entry is None
    app.tabs.selected_index = 1
    app.inspector.threshold.value = .7
    app.navigator.next.click()


@pytest.mark.parametrize('content, words', [(b'', 'empty'), (b'no picture', 'not a picture'), (None, 'truncated'), ('huge', 'too large'), ('tiny', 'too small')])
def test_bad_uploads_are_refused_in_words(app, content, words):
    own, good = app.own, png(np.arange(40*50, dtype=np.uint16).reshape(40, 50).astype(np.uint8))
    upload(own, 'good.png', good)
    assert own.side.case and own.link.value
    if content is None: content = png(np.random.default_rng(0).integers(0, 255, (90, 90), np.uint8))[:3000]
    elif isinstance(content, str): content = png(np.zeros(dict(huge=(20, 17000), tiny=(4, 4))[content], np.uint8))
    upload(own, 'bad.png', content)
    assert words in app.message.text and 'bad.png' in app.message.text and own.kept.name not in app.message.text
    assert own.side.case is None and own.link.value == '' and own.facts.value == ''


def test_paths_segment_without_an_image_and_frames(app, tmp_path):
    own = app.own
    own.go.click()
    assert 'No image yet' in app.message.text
    own.path.value = str(tmp_path)
    assert 'not a file' in app.message.text
    frames = [Image.fromarray(np.full((40, 50), v, np.uint8)) for v in (10, 200)]
    frames[0].save(tmp_path/'film.tif', save_all=True, append_images=frames[1:])
    own.path.value = str(tmp_path/'film.tif')
    assert own.frame.max == 2 and own.frame.layout.visibility == 'visible' and 'frame 1 of 2' in own.facts.value
    before = own.side.numbers.value
    own.frame.value = 2
    assert 'frame 2 of 2' in own.facts.value and own.side.numbers.value != before


def test_dicom(app):
    from pydicom.data import get_testdata_file
    app.own.path.value = str(get_testdata_file('CT_small.dcm', download=False))
    assert app.message.text == '' and 'mm²' in app.own.side.numbers.value


def test_no_model_and_a_bad_model(simulated, small_phantom):
    app = Explorer(small_phantom, models=[])
    app.tabs.selected_index = 1
    assert 'No model chosen' in app.inspector.sides[0].message.text
    upload(app.own, 'x.png', png(np.zeros((40, 50), np.uint8)))
    assert 'No model chosen' in app.message.text
    app.inspector.added.value = '/no/such/model.safetensors'
    assert 'no such model' in app.message.text and app.inspector.sides[1].model.value == ''
    app.inspector.added.value = 'b'
    assert app.inspector.sides[1].model.value == 'b' and 'Dice' in app.inspector.sides[1].numbers.value and app.message.text == ''


def test_nothing_escapes_the_message_area():
    m = Message()
    with guarded(m): raise BusiError('<b>bold</b>')
    assert '&lt;b&gt;' in m.value
    with guarded(m, 'Working'): raise RuntimeError('inside')
    assert 'unforeseen' in m.text and 'RuntimeError' in m.text
    with guarded(m, 'Working'): m.say('Left out: one')
    assert m.text == 'Left out: one', 'what was said meanwhile stays'
    with pytest.raises(KeyboardInterrupt), guarded(m): raise KeyboardInterrupt


# --- the package

def test_predictions_are_remembered_until_there_are_too_many(small_phantom, monkeypatch):
    from busi_unetpp import predict as module
    asked = []
    monkeypatch.setattr(module, 'predict', lambda frame, model, tta: asked.append(tta) or SimpleNamespace(image=frame.pixels))
    predictor = Predictor(keep=15000)
    predictor.models['m'] = 'a network'
    frames = [explore.as_frame(p) for p in open_dataset(small_phantom)[0].image_path[:4]]
    for choice in ('m', 'm', 'm, one view'): predictor(frames[0], choice)
    assert asked == [True, False]
    for f in frames: predictor(f, 'm')
    assert sum(p.image.size for p in predictor.done.values()) <= 15000 + max(f.pixels.size for f in frames)
    n = len(asked)
    predictor(frames[0], 'm')
    assert len(asked) == n + 1, 'forgotten'


def test_the_models_are_those_of_predict():
    from busi_unetpp.predict import NOTICE, shipped_models
    assert model_names() == shipped_models() and explore.NOTICE == NOTICE


def test_the_explorer_needs_no_torch_until_something_is_predicted(small_phantom):
    code = f"import sys; from busi_unetpp.explore import explorer; app = explorer({str(small_phantom)!r}); assert app.entry; app.navigator.next.click(); print(*sys.modules)"
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.split()
    assert 'busi_unetpp.explore' in out and not {'torch', 'fastai', 'matplotlib.pyplot', 'sklearn'} & set(out)


def test_real_busi(busi_root):
    app = Explorer(busi_root, models=[])
    assert app.navigator.position.value == '1 of 780' and app.message.text == ''
    assert 'Same lesion in' in app.browser.facts.value
    app.navigator.label.value = 'normal'
    assert app.navigator.position.value == '1 of 133'


def test_the_explorer_says_what_the_command_says(case):
    case.prediction.flag, case.prediction.presence, case.prediction.silenced = True, .1, True
    assert 'Please check' in score_text(case, .5) and '0.10, below the threshold' in score_text(case, .5)
    case.prediction.flag, case.prediction.presence, case.prediction.silenced = False, None, False
    assert 'Please check' not in score_text(case, .5) and 'shows a lesion' not in score_text(case, .5)
