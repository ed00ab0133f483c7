"""The image-level operating point: the curve against counting by hand, the choice, and a model that is used at it."""
import json

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st

from busi_unetpp.dataset import BusiError
from busi_unetpp.operating import SENSITIVITIES, choose_threshold, operating_curve, operating_points
from busi_unetpp.predict import Model, at_point, predict_frames
from busi_unetpp.images import Frame
from busi_unetpp.presence import Output, as_output, is_silenced
from busi_unetpp.uncertainty import image_uncertainty, predict_views

pytestmark = pytest.mark.usefixtures('one_thread')

rows = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.booleans(), st.integers(0, 3)), min_size=2, max_size=30)

def table(cases): return pd.DataFrame([dict(presence=p, dice=d, area=.1 if lesion else 0., fp=fp) for p, d, lesion, fp in cases])

@settings(max_examples=60)
@given(rows, st.floats(.05, 1))
def test_curve_is_what_counting_says(cases, sensitivity):
    scores = table(cases)
    curve = operating_curve(scores)
    assert curve.threshold.is_monotonic_increasing and curve.threshold.iloc[0] == 0
    for r in curve.itertuples():
        lesions = [(p, d) for p, d, lesion, _ in cases if lesion]
        normals = [(p, fp) for p, _, lesion, fp in cases if not lesion]
        if lesions: assert r.found == pytest.approx(np.mean([p >= r.threshold and d >= .1 for p, d in lesions]))
        if lesions: assert r.dice == pytest.approx(np.mean([d if p >= r.threshold else 0 for p, d in lesions]))
        if normals: assert r.specificity == pytest.approx(np.mean([p < r.threshold or fp == 0 for p, fp in normals]))
        else: assert np.isnan(r.specificity)
    if not scores.area.any(): return
    chosen = choose_threshold(curve, sensitivity)
    if all(lesion for _, _, lesion, _ in cases): assert chosen['threshold'] == 0; return
    reached = curve[curve.found >= min(sensitivity, curve.found.max())]
    assert chosen['specificity'] == reached.specificity.max()
    lower = reached[reached.threshold < chosen['threshold']]
    assert (lower.specificity < chosen['specificity']).all()

def test_points_find_no_less_with_more_sensitivity():
    rng = np.random.default_rng(0)
    scores = pd.DataFrame(dict(presence=rng.random(200), dice=rng.random(200), area=np.where(np.arange(200) < 150, .1, 0), fp=1))
    points = operating_points(operating_curve(scores))
    assert [p['sensitivity'] for p in points] == list(SENSITIVITIES)
    assert all(a['threshold'] >= b['threshold'] for a, b in zip(points, points[1:]))

class Seer(torch.nn.Module):
    "A disk of lesion in every image, and a presence that is the mean gray level."
    def __init__(self):
        super().__init__()
        self.bias = torch.nn.Parameter(torch.zeros(1))
    def forward(self, x):
        y, z = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in x.shape[-2:]), indexing='ij')
        logits = torch.where(y**2 + z**2 < .2, 6., -6.).expand(len(x), 1, *x.shape[-2:]) + self.bias
        return Output(logits, x.mean((1, 2, 3))[:, None].logit(eps=1e-4))

def frames(): return [Frame(f'{g}.png', np.full((64, 80), g, np.uint8)) for g in (20, 128, 230)]

def test_a_silenced_image_has_an_empty_mask_and_says_so():
    model = Model(Seer(), 64, presence_threshold=.3, flag=.5)
    dark, middle, bright = predict_frames(frames(), model)
    assert dark.silenced and not dark.mask.any() and not len(dark.lesions) and dark.probability.max() > .9
    assert dark.presence == pytest.approx(20/255, abs=.01) and dark.score == pytest.approx(dark.presence, abs=1e-4)
    for p in (middle, bright): assert not p.silenced and p.mask.any() and p.score < .2
    assert all(p.mask.any() for p in predict_frames(frames(), Model(Seer(), 64)))

def test_the_user_chooses_the_point():
    model = Model(Seer(), 64, points=[dict(sensitivity=.9, threshold=.6), dict(sensitivity=1., threshold=.05)])
    assert [p.silenced for p in predict_frames(frames(), at_point(model, .9))] == [True, True, False]
    assert [p.silenced for p in predict_frames(frames(), at_point(model, .95))] == [False]*3
    assert not next(predict_frames(frames(), at_point(model, threshold=1.))).mask.any()
    for bad in (-.1, 1.1, True, 'x'):
        with pytest.raises(BusiError, match='threshold'): at_point(model, threshold=bad)

def test_presence_is_the_mean_of_the_views():
    x = torch.rand(3, 1, 64, 64)
    views = predict_views(Seer(), x)
    assert views.presence.shape == (4, 3)
    torch.testing.assert_close(views.presence[0], x.mean((1, 2, 3)), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(views.presence[1], views.presence[0])             # a mirror image is as bright
    assert predict_views(lambda t: t*0, x).presence is None

def test_uncertainty_of_what_is_silenced_is_its_presence():
    views = torch.full((1, 2, 8, 8), .9)
    u = image_uncertainty(views, presence=[.2, .8], presence_threshold=.5)
    assert u[0] == pytest.approx(.2) and u[1] == pytest.approx(1 - 2*.9/1.9, abs=1e-5)
    assert as_output(views).logits is views and is_silenced(None, .9, 3).tolist() == [False]*3
