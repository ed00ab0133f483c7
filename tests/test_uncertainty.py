"""Asking a network several times, ranking images by the answers, and choosing whom to trust."""
import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from sklearn.metrics import f1_score

from busi_unetpp.dataset import BusiError
from busi_unetpp.encoder import build_unetpp
from busi_unetpp.uncertainty import (MEASURES, area_under, choose_flag, image_uncertainty, mc_dropout, rank_quality, risk_coverage, tta_predict, uncertainty_map, uncertainty_table)

pytestmark = pytest.mark.usefixtures('one_thread')
numbers = st.lists(st.tuples(st.floats(0, 1), st.sampled_from([0., .1, .25, .5, .8, 1.])), min_size=1, max_size=25)

@pytest.fixture(scope='module')
def net():
    torch.manual_seed(0)
    return build_unetpp(filters=(4, 6), bottleneck=8, dropout=.3).eval()

class Left(torch.nn.Module):
    "Sees tumor in the left half, whatever the image."
    def forward(self, x): return torch.where(torch.arange(x.shape[-1]) < x.shape[-1]//2, 9., -9.).expand(len(x), 1, *x.shape[-2:])


# views

def test_views_are_brought_back(net):
    x = torch.rand(2, 1, 48, 40)
    views = tta_predict(net, x, scales=(1., .75), temperature=2.)
    assert views.shape == (4, 2, 48, 40) and views.dtype == torch.float32 and 0 <= views.min() and views.max() <= 1
    with torch.no_grad():
        torch.testing.assert_close(views[0], (net(x).logits/2).sigmoid()[:, 0])
        torch.testing.assert_close(views[1], (net(x.flip(-1)).logits/2).sigmoid()[:, 0].flip(-1))

def test_a_mirrored_view_is_mirrored_back():
    views = tta_predict(Left(), torch.rand(1, 1, 32, 32), scales=(1.,))
    assert views[0][0, :, :16].min() > .9 and views[1][0, :, 16:].min() > .9

@pytest.mark.parametrize('mode', [True, False])
def test_dropout_is_on_only_inside(net, mode):
    net.train(mode)
    try:
        before = {k: v.clone() for k, v in net.state_dict().items()}
        a, b = (mc_dropout(net.eval(), torch.rand(2, 1, 48, 48, generator=torch.Generator().manual_seed(1)), 3, seed=5) for _ in range(2))
        assert torch.equal(a, b) and not torch.equal(a[0], a[1])
        assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())       # batch norm has learned nothing
        assert not any(m.training for m in net.modules())
    finally: net.eval()

def test_dropout_layers_are_off_again_after_an_error(net):
    with pytest.raises(Exception): mc_dropout(net, torch.rand(1, 7, 48, 48))
    assert not any(m.training for m in net.modules())

def test_no_dropout_is_said():
    with pytest.raises(BusiError, match='no spatial dropout'): mc_dropout(build_unetpp(filters=(4, 4), bottleneck=4, dropout=0).eval(), torch.rand(1, 1, 48, 48))


# measures

def test_entropy():
    p = np.linspace(.01, .99, 9)
    got = uncertainty_map(torch.tensor(np.stack([p, p]), dtype=torch.float32).reshape(2, 1, 3, 3)).numpy().ravel()
    np.testing.assert_allclose(got, -p*np.log2(p) - (1 - p)*np.log2(1 - p), rtol=1e-5)

@pytest.mark.parametrize('measure', MEASURES)
def test_measures_stay_in_range_and_do_not_look_at_neighbors(measure):
    views = torch.rand(3, 6, 9, 7)**3
    views[:, 2] = 0
    views[:, 3] = 1
    u = image_uncertainty(views, measure=measure)
    assert u.shape == (6,) and (u >= 0).all() and (u <= 1).all() and u[2] == u[3] == 0
    np.testing.assert_allclose([image_uncertainty(views[:, i:i + 1], measure=measure)[0] for i in range(6)], u, atol=1e-6)

def test_disagreement_is_the_mean_of_one_minus_dice():
    v = torch.rand(4, 1, 8, 8)
    m = (v[:, 0] > .5).flatten(1).numpy()
    want = np.mean([1 - f1_score(m[i], m[j]) for i in range(4) for j in range(i)])
    assert image_uncertainty(v, measure='disagreement')[0] == pytest.approx(want, abs=1e-6)


# risk and coverage

@given(numbers)
def test_risk_coverage_is_the_mean_over_all_orders_of_ties(pairs):
    e, u = map(np.array, zip(*pairs))
    rng, n = np.random.default_rng(0), len(e)
    many = np.mean([np.cumsum(e[np.lexsort((rng.random(n), u))])/np.arange(1, n + 1) for _ in range(1500)], axis=0)
    got = risk_coverage(e, u).risk.to_numpy()
    np.testing.assert_allclose(got, many, atol=.09)
    assert got[-1] == pytest.approx(e.mean())

@given(numbers)
def test_no_order_is_better_than_that_of_the_errors(pairs):
    e, u = map(np.array, zip(*pairs))
    assert area_under(risk_coverage(e, e)) <= area_under(risk_coverage(e, u)) + 1e-12
    assert rank_quality(e, u) <= 1 + 1e-9

@given(numbers, st.floats(0, 1), st.booleans())
def test_the_flag_keeps_its_promise_and_keeps_the_most(pairs, rate, cautious):
    u, failed = np.array([p[1] for p in pairs]), np.array([p[0] > .6 for p in pairs]).astype(int)
    flag = choose_flag(u, failed, rate, cautious)
    kept = u <= flag['threshold']
    assert flag['to_human'] == pytest.approx(1 - kept.mean())
    assert not kept.any() or failed[kept].mean() <= rate and flag['error_rate'] == failed[kept].mean() <= flag['error_rate_upper']
    if not cautious: assert not any(failed[u <= t].mean() <= rate and (u <= t).sum() > kept.sum() for t in u)

@pytest.mark.parametrize('args, words', [(([.1], [.5]), 'zeros and ones'), (([.1, .2], [1]), 'expected one'), (([], []), 'at least one'), (([np.nan], [1]), 'finite'), (([.1], [1], 2.), 'a share')])
def test_bad_flags(args, words):
    with pytest.raises(BusiError, match=words): choose_flag(*args)

def test_the_table_does_not_depend_on_the_batch(net):
    rng = np.random.default_rng(0)
    images, masks = rng.integers(0, 255, (5, 48, 48)).astype(np.uint8), (rng.random((5, 48, 48)) < .3).astype(np.uint8)
    names = [f'benign/{i}' for i in range(4)] + ['normal/4']
    one, all_ = (uncertainty_table(net, images, masks, names, batch_size=b, passes=2) for b in (1, 5))
    keep = [c for c in one if 'mc' not in c]
    np.testing.assert_allclose(one[keep[2:]].astype(float), all_[keep[2:]].astype(float), atol=1e-4)
    assert one.label.tolist() == ['benign']*4 + ['normal'] and one.notna().all().all()
    pred = tta_predict(net, torch.tensor(images)[:, None]/255)[0].numpy() > .5
    np.testing.assert_allclose(one.dice_plain, [f1_score(m.ravel(), p.ravel(), zero_division=1) for m, p in zip(masks, pred)], atol=1e-6)
