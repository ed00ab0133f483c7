"""Dice loss and metrics: bounds, limits and gradients, scikit-learn, and Keras's accumulation written out slowly."""
from types import SimpleNamespace

import numpy as np
import pytest
import sklearn.metrics as skm
import torch
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays

from busi_unetpp.losses import DiceLoss, dice_score
from busi_unetpp.presence import Output
from busi_unetpp.metrics import COUNTS, busi_metrics, confusion, per_image_scores, set_scores

pytestmark = pytest.mark.usefixtures('one_thread')

shapes = st.tuples(st.integers(1, 4), st.just(1), st.integers(1, 6), st.integers(1, 6))
floats = st.floats(-30, 30, width=32)

@st.composite
def batches(draw, elements=floats):
    "Logits and a mask of one shape, float32, `(N, 1, H, W)`."
    shape = draw(shapes)
    return torch.tensor(draw(arrays(np.float32, shape, elements=elements))), torch.tensor(draw(arrays(np.float32, shape, elements=st.sampled_from([0., 1.]))))

def slow_dice_loss(logits, mask, smooth=1e-6, per_image=False):
    "The paper's formula in double precision."
    if per_image: return np.mean([slow_dice_loss(a, b, smooth) for a, b in zip(logits, mask)])
    p, y = 1/(1 + np.exp(-np.asarray(logits, np.float64))), np.asarray(mask, np.float64)
    return 1 - (2*(y*p).sum() + smooth)/(y.sum() + p.sum() + smooth)

def slow_gradient(logits, mask, smooth=1e-6):
    "Its derivative by each logit, by hand."
    p, y = 1/(1 + np.exp(-np.asarray(logits, np.float64))), np.asarray(mask, np.float64)
    top, bottom = 2*(y*p).sum() + smooth, y.sum() + p.sum() + smooth
    return -(2*y*bottom - top)/bottom**2*p*(1 - p)


# Dice loss

@settings(max_examples=60)
@given(batches(), st.booleans(), st.sampled_from([1e-6, 1e-2, 1.]))
def test_loss_is_the_formula(batch, per_image, smooth):
    loss = DiceLoss(smooth, per_image)(*batch)
    assert loss.dtype == torch.float32 and loss.shape == () and -1e-6 <= loss <= 1
    assert loss.item() == pytest.approx(slow_dice_loss(*batch, smooth, per_image), abs=1e-5)

@settings(max_examples=30)
@given(batches(st.floats(-8, 8, width=32)))
def test_gradient_is_the_derivative(batch):
    logits, mask = batch[0].requires_grad_(), batch[1]
    DiceLoss()(logits, mask).backward()
    np.testing.assert_allclose(logits.grad, slow_gradient(logits.detach(), mask), rtol=1e-3, atol=1e-6)

@pytest.mark.parametrize('per_image', [False, True])
def test_gradient_by_finite_differences(per_image):
    torch.manual_seed(0)
    logits, mask = torch.randn(3, 1, 4, 5, dtype=torch.double, requires_grad=True), (torch.rand(3, 1, 4, 5) > .6).double()
    assert torch.autograd.gradcheck(lambda t: DiceLoss(per_image=per_image)(t, mask).double(), logits, eps=1e-2, atol=1e-4, rtol=1e-2)  # coarse: it computes in float32

@settings(max_examples=40)
@given(batches(), st.booleans(), st.randoms(use_true_random=False))
def test_the_order_of_images_and_pixels_does_not_matter(batch, per_image, rnd):
    logits, mask = batch
    loss, images = DiceLoss(per_image=per_image), rnd.sample(range(len(mask)), len(mask))
    assert loss(logits[images], mask[images]).item() == pytest.approx(loss(logits, mask).item(), abs=1e-6)
    assert loss(logits.flip(-1).mT, mask.flip(-1).mT).item() == pytest.approx(loss(logits, mask).item(), abs=1e-6)

@settings(max_examples=40)
@given(batches(), st.booleans())
def test_perfect_is_zero_and_opposite_is_one(batch, per_image):
    loss, mask = DiceLoss(per_image=per_image), batch[1]
    assert loss(200*mask - 100, mask).item() == pytest.approx(0, abs=1e-6)
    if mask.flatten(1).any(1).all(): assert loss(100 - 200*mask, mask).item() == pytest.approx(1, abs=1e-5)

@settings(max_examples=40)
@given(batches(st.floats(-4, 4, width=32)), st.data())
def test_a_better_prediction_has_a_smaller_loss(batch, data):
    logits, mask = batch
    i = tuple(data.draw(st.integers(0, n - 1)) for n in mask.shape)
    better = logits.clone()
    better[i] += 1 if mask[i] else -1
    assert DiceLoss()(better, mask) <= DiceLoss()(logits, mask) + 1e-6

@settings(max_examples=40)
@given(shapes, st.sampled_from([torch.float16, torch.bfloat16]), st.booleans(), st.data())
def test_half_precision_is_finite_and_close(shape, dtype, per_image, data):
    logits = torch.tensor(data.draw(arrays(np.float32, shape, elements=st.sampled_from([-6e4, -90., -5., -.1, 0., .1, 5., 90., 6e4])))).to(dtype).requires_grad_()
    mask = torch.tensor(data.draw(arrays(np.float32, shape, elements=st.sampled_from([0., 1.]))))
    loss = DiceLoss(per_image=per_image)(logits, mask.to(dtype))
    loss.backward()
    assert loss.isfinite() and logits.grad.isfinite().all() and logits.grad.dtype == dtype
    with np.errstate(over='ignore'): assert loss.item() == pytest.approx(slow_dice_loss(logits.detach().float(), mask, per_image=per_image), abs=1e-4)

def test_half_precision_sums_do_not_overflow():
    mask = torch.ones(2, 1, 400, 400, dtype=torch.float16)                      # 320,000 pixels: float16 ends at 65,504
    assert DiceLoss()(mask*9, mask).item() == pytest.approx(0, abs=1e-3)

def test_dice_score_sums_halves_in_float32():
    ones = torch.ones(1, 1, 300, 300, dtype=torch.float16)
    assert dice_score(ones, ones) == 1

def test_large_smooth_dominates_and_zero_pixels_score_one():
    p, y = torch.zeros(1, 4), torch.zeros(1, 4)
    assert dice_score(p, y).item() == 1 and dice_score(p, torch.ones(1, 4), smooth=4.).item() == .5

@settings(max_examples=20)
@given(batches(), st.integers(1, 3))
def test_several_heads_are_averaged(batch, n):
    logits, mask = batch
    heads = [logits*(k + 1)/2 for k in range(n)]
    assert DiceLoss()(Output(logits, heads=tuple(heads)), mask).item() == pytest.approx(np.mean([slow_dice_loss(h, mask) for h in heads]), abs=1e-5)


# metrics

class KerasMeanIoU:
    "Keras's `MeanIoU`: one confusion matrix filled pixel by pixel over all batches; a class in neither truth nor prediction does not count."
    def __init__(self): self.matrix = [[0, 0], [0, 0]]
    def update(self, true, pred):
        for t, p in zip(true.ravel().tolist(), pred.ravel().tolist()): self.matrix[int(t)][int(p)] += 1
    def result(self):
        ious = []
        for c in (0, 1):
            union = sum(self.matrix[c]) + sum(row[c] for row in self.matrix) - self.matrix[c][c]
            if union: ious.append(self.matrix[c][c]/union)
        return sum(ious)/len(ious)

def mean(values): return np.mean(values) if len(values) else np.nan

def by_sklearn(p, t):
    "All of `set_scores` by scikit-learn on pixel lists, with the stated rules for empty masks."
    P, T = p.ravel(), t.ravel()
    iou = lambda t, p: skm.jaccard_score(t, p, zero_division=1.)
    dice = lambda t, p: skm.f1_score(t, p, zero_division=1.)
    each, empty = list(zip(t.reshape(len(t), -1), p.reshape(len(p), -1))), ~t.reshape(len(t), -1).any(1)
    precision = skm.precision_score(T, P, zero_division=0.) if P.any() else float(not T.any())
    full = [e for e, gone in zip(each, empty) if not gone]
    return dict(iou=skm.jaccard_score(T, P, average='macro', labels=np.union1d(T, P)), accuracy=skm.accuracy_score(T, P), tumor_iou=iou(T, P), tumor_dice=dice(T, P),
        precision=precision, recall=skm.recall_score(T, P, zero_division=1.), specificity=skm.recall_score(~T, ~P, zero_division=1.),
        image_iou=mean([iou(*e) for e in each]), image_dice=mean([dice(*e) for e in each]), image_iou_with_tumor=mean([iou(*e) for e in full]),
        image_dice_with_tumor=mean([dice(*e) for e in full]), clean_normals=mean([not p.any() for (t, p), gone in zip(each, empty) if gone]))

@st.composite
def predictions(draw):
    "Logits and masks of a small set in which empty masks and empty predictions are common."
    shape = draw(st.tuples(st.integers(1, 6), st.just(1), st.integers(1, 4), st.integers(1, 4)))
    keep = lambda: np.array(draw(st.lists(st.booleans(), min_size=shape[0], max_size=shape[0])))[:, None, None, None]
    p, t = (draw(arrays(bool, shape)) & keep() for _ in range(2))
    return torch.tensor(np.where(p, .3, -.3).astype(np.float32)), torch.tensor(t.astype(np.float32))

@pytest.mark.filterwarnings('ignore')
@settings(max_examples=60)
@given(predictions())
def test_scores_are_scikit_learns(batch):
    logits, mask = batch
    got, want = set_scores(confusion(logits, mask).numpy()), by_sklearn(logits.numpy() > 0, mask.numpy() > 0)
    assert got.keys() == want.keys()
    for k in want: assert got[k] == pytest.approx(want[k], nan_ok=True), k

@settings(max_examples=40)
@given(predictions())
def test_counts_are_a_confusion_matrix_an_image(batch):
    logits, mask = batch
    counts = confusion(logits, mask)
    assert counts.dtype == torch.int64
    for c, p, t in zip(counts, logits > 0, mask > 0):
        tn, fp, fn, tp = skm.confusion_matrix(t.flatten(), p.flatten(), labels=[False, True]).ravel()
        assert c.tolist() == [tp, fp, fn, tn]
    assert torch.equal(confusion(logits.half(), mask.half()), counts) and torch.equal(confusion(logits, mask.bool()), counts)

def partitions(draw, n):
    "Borders that cut `n` images into batches of any size."
    return [0, *sorted(draw(st.sets(st.integers(1, n - 1)))) , n] if n > 1 else [0, n]

def accumulate(metrics, logits, mask, borders):
    "What fastai does in a validation: reset, each metric after each batch, then the values."
    for m in metrics: m.reset()
    for a, b in zip(borders, borders[1:]):
        learn = SimpleNamespace(pred=logits[a:b], yb=(mask[a:b],))
        for m in metrics: m.accumulate(learn)
    return {m.name: m.value for m in metrics}

KEYS = list(set_scores([[1, 1, 1, 1]]))

@settings(max_examples=60)
@given(predictions(), st.data())
def test_any_partition_into_batches_gives_the_same(batch, data):
    logits, mask = batch
    borders, metrics, keras = partitions(data.draw, len(mask)), busi_metrics(*KEYS), KerasMeanIoU()
    for a, b in zip(borders, borders[1:]): keras.update(mask[a:b].numpy(), (logits[a:b] > 0).numpy())
    first = accumulate(metrics, logits, mask, borders)
    assert first == pytest.approx(set_scores(confusion(logits, mask).numpy()), nan_ok=True)
    assert first['iou'] == pytest.approx(keras.result())
    assert accumulate(metrics, logits, mask, [0, len(mask)]) == pytest.approx(first, nan_ok=True)  # a second epoch starts from nothing

def test_two_batches_with_the_same_tensor_count_twice():
    a, b = torch.ones(1, 1, 2, 2), -torch.ones(1, 1, 2, 2)
    logits, mask = torch.cat([a, a, b]), torch.ones(3, 1, 2, 2)
    assert accumulate(busi_metrics('recall', 'accuracy'), logits, mask, [0, 1, 2, 3]) == dict(recall=2/3, accuracy=2/3)

def test_a_value_may_be_read_between_batches():
    metrics, values = busi_metrics('recall'), []
    metrics[0].reset()
    for sign in (1, -1):
        metrics[0].accumulate(SimpleNamespace(pred=sign*torch.ones(1, 1, 2, 2), yb=(torch.ones(1, 1, 2, 2),)))
        values.append(metrics[0].value)
    assert values == [1, .5]

def test_accumulating_reads_nothing_from_the_device(monkeypatch):
    logits, mask, metrics = torch.randn(4, 1, 3, 3), torch.ones(4, 1, 3, 3), busi_metrics()
    def sync(*args, **kw): raise AssertionError('waits for the device')
    with monkeypatch.context() as m:
        for name in ('item', 'cpu', 'tolist', 'numpy', '__bool__', '__float__', '__int__'): m.setattr(torch.Tensor, name, sync)
        for x in metrics: x.reset()
        for x in metrics: x.accumulate(SimpleNamespace(pred=logits, yb=(mask,)))
    assert 0 <= metrics[0].value <= 1

@pytest.mark.parametrize('counts, want', [
    ([0, 0, 0, 9], dict(dice=1, iou=1, precision=1, recall=1)),                 # no tumor, none found: right
    ([0, 1, 0, 8], dict(dice=0, iou=0, precision=0, recall=1)),                 # no tumor, one pixel of false alarm: wrong
    ([0, 0, 1, 8], dict(dice=0, iou=0, precision=0, recall=0)),                 # a tumor, nothing found
    ([9, 0, 0, 0], dict(dice=1, iou=1, precision=1, recall=1))])
def test_rules_for_empty_masks(counts, want):
    row = per_image_scores([counts]).iloc[0]
    assert row[list(want)].to_dict() == want and row[COUNTS].tolist() == counts

def test_pooled_and_per_image_are_not_the_same():
    s = set_scores([[90, 0, 10, 0], [0, 5, 0, 95], [0, 0, 0, 100]])
    assert s['tumor_dice'] == pytest.approx(180/195) and s['image_dice'] == pytest.approx((180/190 + 0 + 1)/3)
    assert s['image_dice_with_tumor'] == pytest.approx(180/190) and s['clean_normals'] == .5
    assert np.isnan(set_scores([[1, 0, 0, 1]])['clean_normals']) and np.isnan(set_scores([[0, 0, 0, 1]])['image_dice_with_tumor'])

def test_a_pixel_on_the_threshold_is_background():
    logits = torch.tensor([-1e-3, 0., 1e-3]).view(1, 1, 1, 3)
    assert confusion(logits, torch.ones(1, 1, 1, 3)).tolist() == [[1, 0, 2, 0]]
    assert DiceLoss().decodes(DiceLoss().activation(logits)).flatten().tolist() == [0, 0, 1]

def test_counts_of_many_large_images_do_not_overflow():
    s = set_scores(np.full((5000, 4), 2**20, dtype=np.int64))
    assert s['accuracy'] == .5 and s['tumor_iou'] == pytest.approx(1/3)
