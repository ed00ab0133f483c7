"""Damaged files of every kind that is read: only `BusiError` comes out.

The ordinary run tries a few hundred. `python -m pytest -m fuzz` tries FUZZ_INPUTS (100,000) and writes the counts to nbs/records/fuzz.json.
"""
import io
import json
import os
import resource
import shutil
import time
import warnings
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from busi_unetpp.checkpoint import load_weights, save_weights
from busi_unetpp.dataset import BusiError, read_gray, read_mask
from busi_unetpp.fetch import safe_unzip
from busi_unetpp.files import made_with, write_json
from busi_unetpp.images import read_image
from busi_unetpp.predict import load_model
from busi_unetpp.run import read_choices, read_config, read_recipe
from busi_unetpp.split import read_split
from busi_unetpp.unetpp import UNetPlusPlus
from test_images import write_dicom

RECORD = Path(__file__).parents[1]/'nbs'/'records'/'fuzz.json'
RAMP = (np.arange(40*60).reshape(40, 60) % 256).astype(np.uint8)
EXTREMES = [b'\0\0\0\0', b'\xff\xff\xff\xff', b'\x7f\xff\xff\xff', b'\x80\0\0\0', b'nan ', b'1e99', b'null', b'"":[']


def mutated(rng, data):
    "The bytes with one to three faults of the kinds that disks, transfers and hands make."
    data = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        i, n = int(rng.integers(0, max(1, len(data)))), int(rng.integers(1, 64))
        kind = rng.integers(0, 7)
        if kind == 0: data[i:i + 1] = bytes([int(rng.integers(0, 256))])
        elif kind == 1: del data[i:]
        elif kind == 2: del data[i:i + n]
        elif kind == 3: data[i:i] = rng.bytes(n)
        elif kind == 4: data[i:i] = data[max(0, i - n):i]
        elif kind == 5: data[i:i + n] = bytes(min(n, len(data) - i))
        else: data[i:i + 4] = EXTREMES[rng.integers(0, len(EXTREMES))]
    return bytes(data)


def saved(write):
    buf = io.BytesIO()
    write(buf)
    return buf.getvalue()


def picture(kind, **options): return saved(lambda b: Image.fromarray(RAMP).save(b, kind, **options))


def zipped():
    def write(b):
        with zipfile.ZipFile(b, 'w', zipfile.ZIP_DEFLATED) as z:
            for name in ('benign/a.png', 'normal/b.png'): z.writestr(name, picture('PNG'))
    return saved(write)


def small_table(folder):
    "Six images as a split knows them."
    for i in range(6): Image.fromarray(np.roll(RAMP, i)).save(folder/f'{i}.png')
    return pd.DataFrame(dict(image=[f'benign/benign ({i}).png' for i in range(6)], label='benign', image_path=[folder/f'{i}.png' for i in range(6)]))


def sound_files(folder):
    "Kind -> (bytes of a sound file, its name, what reads it)."
    write_dicom(folder/'a.dcm', np.stack([RAMP, RAMP]))
    write_dicom(folder/'window.dcm', RAMP[None], WindowCenter=100, WindowWidth=50, RescaleSlope='1.5', RescaleIntercept='-3', PixelSpacing=['0.1', '0.1'])
    save_weights(folder/'m.safetensors', UNetPlusPlus(filters=(4,), bottleneck=4), dict(filters=[4], bottleneck=4))
    run = Path(__file__).parents[1]/'nbs'/'records'/'runs'/'busi-0-cpu'
    def all_frames(p): return [f.pixels.shape for f in read_image(p)]
    def both(p): return read_gray(p), all_frames(p)
    mask = saved(lambda b: Image.fromarray((RAMP > 99).astype(np.uint8)*255).save(b, 'PNG'))
    table = small_table(folder)
    split = table[['image']].assign(part=['train']*4 + ['test']*2).to_csv(index=False).encode()
    return {
        'PNG': (picture('PNG'), 'a.png', both), 'PNG 16': (saved(lambda b: Image.fromarray(RAMP.astype(np.uint16)*257).save(b, 'PNG')), 'a.png', both),
        'JPEG': (picture('JPEG'), 'a.jpg', both), 'JPEG progressive': (picture('JPEG', progressive=True), 'a.jpg', both),
        'TIFF': (picture('TIFF'), 'a.tif', both), 'TIFF LZW': (picture('TIFF', compression='tiff_lzw'), 'a.tif', both), 'BMP': (picture('BMP'), 'a.bmp', both),
        'GIF': (picture('GIF'), 'a.gif', both), 'WebP': (picture('WEBP'), 'a.webp', both),
        'DICOM': ((folder/'a.dcm').read_bytes(), 'a.dcm', all_frames), 'DICOM window': ((folder/'window.dcm').read_bytes(), 'a.dcm', all_frames),
        'mask': (mask, 'a_mask.png', read_mask), 'split CSV': (split, 'split.csv', lambda p: read_split(p, table)),
        'config': ((run/'config.json').read_bytes(), 'config.json', lambda p: read_recipe(p.parent, read_config(p.parent))),
        'choices': ((run/'choices.json').read_bytes(), 'choices.json', lambda p: read_choices(p.parent)),
        'weights': ((folder/'m.safetensors').read_bytes(), 'm.safetensors', lambda p: (load_weights(p), load_model(p, 'cpu'))),
        'ZIP': (zipped(), 'a.zip', lambda p: shutil.rmtree(safe_unzip(p, p.parent/'unpacked'))),
    }


def fuzz(folder, n, seed):
    "Read `n` damaged files; returns the counts by kind, what escaped, and the longest time of a file."
    (sources := folder/'sound').mkdir()
    kinds, rng = sound_files(sources), np.random.default_rng(seed)
    counts, refused, escapes, slowest = Counter(), Counter(), [], (0., '')
    for i in range(n):
        kind = [*kinds][i % len(kinds)]
        data, name, read = kinds[kind]
        path = folder/name
        path.write_bytes(mutated(rng, data))
        began = time.monotonic()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                read(path)
        except BusiError: refused[kind] += 1
        except Exception as e: escapes.append((kind, i, f'{type(e).__name__}: {str(e)[:120]}'))
        counts[kind] += 1
        slowest = max(slowest, (time.monotonic() - began, f'{kind} {i}'))
    return dict(inputs=n, seed=seed, by_kind=dict(counts), refused=dict(refused), escapes=escapes, slowest_seconds=round(slowest[0], 3), slowest=slowest[1])


@pytest.mark.parametrize('seed', range(4))
def test_damaged_files_are_refused_with_one_kind_of_error(tmp_path, seed):
    found = fuzz(tmp_path, 170, seed)
    assert found['escapes'] == []
    assert sum(found['refused'].values()) > 60 and all(found['by_kind'].values())


def test_sound_files_are_read(tmp_path):
    for kind, (data, name, read) in sound_files(tmp_path).items():
        (tmp_path/'one').mkdir(exist_ok=True)
        (tmp_path/'one'/name).write_bytes(data)
        read(tmp_path/'one'/name)


def test_an_escape_would_be_noticed(tmp_path, monkeypatch):
    def careless(path): raise KeyError('x')
    monkeypatch.setattr('test_fuzz.read_mask', careless)
    assert any(kind == 'mask' for kind, *_ in fuzz(tmp_path, 34, 0)['escapes'])


@pytest.mark.fuzz
def test_a_hundred_thousand_damaged_files(tmp_path):
    n = int(os.environ.get('FUZZ_INPUTS', 100_000))
    began = time.monotonic()
    found = fuzz(tmp_path, n, 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024
    write_json(RECORD, found | dict(seconds=round(time.monotonic() - began), peak_megabytes=round(peak), command='python -m pytest -m fuzz', **made_with('pillow', 'pydicom', 'numpy')))
    assert found['escapes'] == [] and found['slowest_seconds'] < 5 and peak < 1000 + 700      # the package and torch need 700 MB before the first file
