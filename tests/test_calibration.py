"Reliability against scikit-learn and a slow loop, temperatures that are known, and input that is refused."
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import expit
from sklearn.calibration import calibration_curve

from busi_unetpp.calibration import apply_temperature, expected_calibration_error, fit_temperature, lesion_confidence, plot_reliability, reliability, to_logits
from busi_unetpp.dataset import BusiError

@st.composite
def scored(draw):
    n = draw(st.integers(2, 60))
    return draw(arrays(np.float64, n, elements=st.one_of(st.floats(0, 1), st.sampled_from([0., .2, .5, 1.])))), draw(arrays(np.uint8, n, elements=st.integers(0, 1)))

@settings(max_examples=80)
@given(scored(), st.integers(1, 20))
def test_bins_are_those_of_scikit_learn(case, bins):
    probs, masks = case
    table = reliability(probs, masks, bins)
    observed, confidence = calibration_curve(masks, probs, n_bins=bins, pos_label=1)
    filled = table.dropna()
    np.testing.assert_allclose(filled.observed, observed)
    np.testing.assert_allclose(filled.confidence, confidence, atol=1e-12)
    assert len(table) == bins and table.pixels.sum() == len(probs) and (table.pixels[table.observed.isna()] == 0).all()

@settings(max_examples=40)
@given(scored(), st.integers(1, 10), st.floats(0, .6), st.booleans())
def test_error_is_the_mean_distance_over_the_pixels_chosen(case, bins, above, adaptive):
    probs, masks = case
    chosen = probs >= above
    if not chosen.any():
        with pytest.raises(BusiError, match='No pixel'): reliability(probs, masks, bins, above, adaptive)
        return
    table = reliability(probs, masks, bins, above, adaptive)
    assert table.pixels.sum() == chosen.sum()
    error = expected_calibration_error(table)
    assert 0 <= error <= 1
    assert error >= abs(probs[chosen].mean() - masks[chosen].mean()) - 1e-9       # bins can only add to the distance of the whole
    assert error <= np.abs(probs[chosen] - masks[chosen]).mean() + 1e-9

def test_bins_of_equally_many_pixels():
    probs = np.random.default_rng(0).random(3000)**4
    table = reliability(probs, probs > .5, bins=10, adaptive=True)
    assert len(table) == 10 and table.pixels.between(299, 301).all()
    assert len(reliability([0.]*90 + [.4]*10, [0]*100, adaptive=True)) < 15       # equal edges are merged
    assert reliability([.3, .3], [0, 1], adaptive=True).pixels.tolist() == [2]

def test_pieces_add_up():
    "More pixels than are counted at a time."
    rng = np.random.default_rng(0)
    probs = rng.random((11, 320, 320), dtype=np.float32)
    masks = rng.random(probs.shape) < probs
    table = reliability(probs, masks)
    observed, confidence = calibration_curve(masks.ravel(), probs.ravel(), n_bins=15)
    np.testing.assert_allclose(table.observed, observed)
    np.testing.assert_allclose(table.confidence, confidence, rtol=1e-5)
    assert probs.size > 2**20 and expected_calibration_error(table) < .005

@pytest.mark.parametrize('temperature', [.4, 1, 3])
def test_a_known_temperature_is_found(temperature):
    rng = np.random.default_rng(1)
    z = rng.normal(-2, 2, 60_000)
    assert fit_temperature(z*temperature, rng.random(z.shape) < expit(z)) == pytest.approx(temperature, rel=.05)

@settings(max_examples=60)
@given(arrays(np.float32, st.integers(1, 40), elements=st.floats(0, 1, width=32)), st.floats(.02, 50))
def test_no_temperature_changes_a_mask_or_the_order(probs, temperature):
    cooled = apply_temperature(probs, temperature)
    assert np.array_equal(cooled > .5, probs > .5)
    assert (np.diff(cooled[np.argsort(probs, kind='stable')]) >= 0).all() and ((cooled >= 0) & (cooled <= 1)).all()

def test_logits_are_finite_and_go_back():
    p = np.float32([0, 1e-20, .3, .5, 1])
    assert np.isfinite(to_logits(p)).all()
    np.testing.assert_allclose(expit(to_logits(p)), p, atol=2e-7)

@pytest.mark.parametrize('z, y', [([-3., -2, 4], [0, 0, 1]), ([3., 2, -4], [0, 0, 1]), ([-3., -2], [0, 0])], ids=['all right', 'all wrong', 'no tumor'])
def test_where_no_temperature_is_best(z, y):
    with pytest.raises(BusiError, match='No temperature'): fit_temperature(z, y)

@pytest.mark.parametrize('probs, masks, why', [([.2, 1.1], [0, 1], '0 to 1'), ([-.1, .5], [0, 1], '0 to 1'), ([np.nan, .5], [0, 1], 'NaN'), ([.5], [0, 1], 'shapes differ'),
    ([], [], 'empty'), ([.5, .5], [0, 255], 'zeros and ones')])
def test_bad_input_is_refused(probs, masks, why):
    with pytest.raises(BusiError, match=why): reliability(probs, masks)

@pytest.mark.parametrize('z, y, why', [([0.], [0, 1], 'shapes differ'), ([], [], 'finite'), ([np.inf, 0], [0, 1], 'finite'), ([0., 1], [0, 7], 'zeros and ones')])
def test_bad_logits_are_refused(z, y, why):
    with pytest.raises(BusiError, match=why): fit_temperature(z, y)

@pytest.mark.parametrize('temperature', [0, -1, np.nan, np.inf])
def test_bad_temperatures_are_refused(temperature):
    with pytest.raises(BusiError, match='above 0'): apply_temperature([.5], temperature)

def test_images_and_figure():
    from matplotlib.figure import Figure
    probs = np.zeros((3, 4, 4))
    probs[1, 2, 2], probs[2, 0, 0] = .7, 1
    assert lesion_confidence(probs).tolist() == [0, .7, 1]
    with pytest.raises(BusiError): lesion_confidence(probs[0])
    ax = Figure().subplots()
    for label in ('raw', 'cooled'): plot_reliability(reliability(probs, probs > .8), ax, label)
    assert len(ax.lines) == 3                                           # one diagonal for two curves
