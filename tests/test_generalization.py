"""What a run has seen, a flag that moves from one source to another, and what a set does not allow to say."""
import numpy as np
import pandas as pd
import pytest

from busi_unetpp.dataset import BusiError
from busi_unetpp.generalization import apply_flag, cannot_be_computed, evaluate_unseen, summarize_unseen, transfer_flag
from busi_unetpp.groups import known_groups, pixel_digests
from busi_unetpp.split import DIGITS, seen_in_training
from busi_unetpp.sources import read_datasets


def split_of(df, parts):
    groups = known_groups(df)
    return pd.DataFrame(dict(image=df.image, part=parts, group=groups.group, known=groups.known != 'not known', pixels=pixel_digests(df).str[:DIGITS]))

def test_seen_images_are_recognized_by_their_pixels(small_phantom, tmp_path):
    from busi_unetpp.phantom import make_phantom
    df = read_datasets(small_phantom)
    parts = ['train', 'valid', 'test', 'test']*4
    split = split_of(df, parts)
    assert seen_in_training(df, split).tolist() == [p in ('train', 'valid') for p in parts]
    other = read_datasets(make_phantom(tmp_path/'other', n=16, size=(64, 90), seed=5))
    assert other.image.tolist() == df.image.tolist() and not seen_in_training(other, split).any()      # the same names, other pixels

def test_seen_images_are_recognized_by_their_patient(busbra_root):
    df = read_datasets(busbra_root)
    first = df.patient.astype(str) == df.patient.astype(str)[0]
    split = split_of(df, np.where(df.index == 0, 'train', 'test'))
    assert first.sum() > 1 and seen_in_training(df, split).tolist() == first.tolist()

def test_a_run_without_known_groups_in_its_split_is_still_compared(small_phantom):
    df = read_datasets(small_phantom)
    old = split_of(df, ['train']*16).drop(columns=['known', 'pixels'])                 # as version 0.1.0 wrote it
    assert not seen_in_training(df, old).any()                                         # groups that are not known say nothing

def scores(n=200, seed=0, shift=0.):
    rng = np.random.default_rng(seed)
    dice = rng.beta(2, 1, n)
    return pd.DataFrame(dict(image=[str(i) for i in range(n)], group=np.arange(n)//2, dice=dice, area=.1, uncertainty=np.clip(1 - dice + rng.normal(shift, .1, n), 0, 1)))

def test_a_flag_is_what_counting_says():
    t = scores()
    for threshold in (.1, .4, .8):
        found, kept = apply_flag(t, threshold), [(d, u) for d, u in zip(t.dice, t.uncertainty) if u <= threshold]
        assert found['to_human'] == pytest.approx(1 - len(kept)/len(t)) and found['failures_unseen'] == pytest.approx(np.mean([d < .5 for d, _ in kept]))

def test_a_cautious_flag_moves_well_and_an_overconfident_source_is_noticed():
    same, sure = transfer_flag(scores(), scores(seed=1)), transfer_flag(scores(), scores(seed=1, shift=-.3))
    value, low, high = same['failures_unseen']
    assert low <= value <= high and value <= .1 < sure['failures_unseen'][0]
    assert same['threshold'] <= transfer_flag(scores(), scores(seed=1), cautious=False)['threshold']

@pytest.mark.parametrize('area, label, known, says', [(.1, 'benign', 'patient', 'No normal images'), (0., 'normal', 'patient', 'No lesions'),
    (.1, 'benign', 'not known', '4 images'), (.1, 'unlabeled', 'patient', 'no scores by class')])
def test_what_cannot_be_computed_is_said(area, label, known, says):
    df, s = pd.DataFrame(dict(label=[label]*4)), pd.DataFrame(dict(area=[area]*4))
    assert any(says in sentence for sentence in cannot_be_computed(df, s, pd.Series([known]*4)))

def test_bad_input_is_named(tmp_path, small_phantom):
    with pytest.raises(BusiError, match='no config.json'): evaluate_unseen(tmp_path, small_phantom)
    with pytest.raises(BusiError, match='share of the lesions|expected a share|No images'): summarize_unseen(scores().assign(presence=1.)[:0])
