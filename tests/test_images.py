"""Reading images of unknown origin: real files of every format, and every way in which a file can be broken or malicious."""
import os
import struct
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGBaseline8Bit, JPEGLSLossless, RLELossless, UltrasoundImageStorage,
    UltrasoundMultiFrameImageStorage, generate_uid)

from busi_unetpp.dataset import BusiError, read_gray
from busi_unetpp.images import PIXELS, Frame, as_frame, check_shape, dicom_spacing, find_images, read_image, to_uint8

RAMP = np.add.outer(np.arange(40)*2, np.arange(60)*3).astype(np.uint8)      # 0 to 255, no symmetry

def write_dicom(path, frames, kind='MONOCHROME2', syntax=ExplicitVRLittleEndian, data=None, **more):
    ds, bits = Dataset(), frames.dtype.itemsize*8
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID, ds.file_meta.MediaStorageSOPInstanceUID = syntax, generate_uid()
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = UltrasoundMultiFrameImageStorage if len(frames) > 1 else UltrasoundImageStorage
    ds.SOPInstanceUID, ds.Modality, ds.PatientName = ds.file_meta.MediaStorageSOPInstanceUID, 'US', 'Doe^Jane'
    ds.Rows, ds.Columns = frames.shape[1:3]
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = (3 if frames.ndim == 4 else 1), kind, 0
    if frames.ndim == 4: ds.PlanarConfiguration = 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.NumberOfFrames = bits, bits, bits - 1, len(frames)
    for k, v in more.items(): setattr(ds, k, v)
    ds.PixelData = data if data is not None else frames.tobytes() + b'\0'*(frames.nbytes % 2)
    if data is not None: ds['PixelData'].VR = 'OB'
    ds.save_as(path, enforce_file_format=True)
    return path

def region(dy, dx, unit=3, kind=1):
    r = Dataset()
    r.PhysicalDeltaY, r.PhysicalDeltaX, r.PhysicalUnitsXDirection, r.PhysicalUnitsYDirection, r.RegionSpatialFormat = dy, dx, unit, unit, kind
    return r

def pixels(path): return [f.pixels for f in read_image(path)]


# pictures

@pytest.mark.parametrize('ending, options', [('png', {}), ('bmp', {}), ('tif', {}), ('tiff', dict(compression='tiff_lzw')), ('tif', dict(compression='tiff_deflate'))])
def test_lossless_formats_come_back_exactly(tmp_path, ending, options):
    Image.fromarray(RAMP).save(tmp_path/f'a.{ending}', **options)
    frame, = read_image(tmp_path/f'a.{ending}')
    np.testing.assert_array_equal(frame.pixels, RAMP)
    assert (frame.name, frame.index, frame.frames, frame.spacing_mm, frame.pixels.dtype) == (f'a.{ending}', 1, 1, None, np.uint8)

@pytest.mark.parametrize('mode', ['L', 'RGB', 'RGBA', 'P', '1', 'LA', 'I;16'])
def test_png_is_read_as_in_training(tmp_path, mode):
    im = Image.fromarray(RAMP.astype(np.uint16)*257) if mode == 'I;16' else Image.fromarray(RAMP).convert(mode)
    im.save(tmp_path/'a.png')
    np.testing.assert_array_equal(pixels(tmp_path/'a.png')[0], read_gray(tmp_path/'a.png'))

def test_jpeg_and_a_wrong_ending(tmp_path):
    Image.fromarray(RAMP).save(tmp_path/'a.jpg', quality=95)
    assert np.abs(pixels(tmp_path/'a.jpg')[0].astype(int) - RAMP).max() < 12
    (tmp_path/'a.jpg').rename(tmp_path/'a.png')
    assert len(pixels(tmp_path/'a.png')) == 1

@pytest.mark.parametrize('a', [RAMP.astype(np.uint16)*16, RAMP.astype(np.int32)*257, (RAMP/255).astype(np.float32), RAMP.astype(np.float32)], ids=['12 bit', '16 bit in 32', 'float to 1', 'float to 255'])
def test_deep_tiff_keeps_its_gray_levels(tmp_path, a):
    Image.fromarray(a).save(tmp_path/'a.tif')
    assert np.abs(pixels(tmp_path/'a.tif')[0].astype(int) - RAMP).max() <= 1

@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_nan_in_a_float_tiff_is_an_error(tmp_path, value):
    a = RAMP.astype(np.float32)
    a[3, 4] = value
    Image.fromarray(a).save(tmp_path/'a.tif')
    with pytest.raises(BusiError, match=r'a\.tif: 1 pixels are NaN or infinite'): pixels(tmp_path/'a.tif')

def test_tiff_pages_are_frames_and_thumbnails_are_not(tmp_path):
    Image.fromarray(RAMP).save(tmp_path/'a.tif', save_all=True, append_images=[Image.fromarray(255 - RAMP), Image.fromarray(RAMP[::2, ::2])])
    frames = list(read_image(tmp_path/'a.tif'))
    assert [str(f) for f in frames] == ['a.tif, frame 1 of 3', 'a.tif, frame 2 of 3']
    np.testing.assert_array_equal(frames[1].pixels, 255 - RAMP)

@given(arrays(np.int64, (3, 4), elements=st.integers(-300, 30000)), st.sampled_from([np.uint16, np.int16, np.float32, np.int64]))
def test_gray_levels_keep_the_order(a, dtype):
    a = (a if dtype != np.uint16 else abs(a)).astype(dtype)
    flat = a.ravel()[np.argsort(a.ravel(), kind='stable')]
    assert (np.diff(to_uint8(flat).astype(int)) >= 0).all()


# dicom

def test_a_film(tmp_path):
    film = np.stack([RAMP, RAMP[::-1], 255 - RAMP])
    frames = list(read_image(write_dicom(tmp_path/'film', film, SequenceOfUltrasoundRegions=[region(.02, .01)])))
    np.testing.assert_array_equal([f.pixels for f in frames], film)
    assert [f.index for f in frames] == [1, 2, 3] and frames[0].spacing_mm == pytest.approx((.2, .1))

@pytest.mark.parametrize('syntax', [ImplicitVRLittleEndian, RLELossless])
def test_other_transfer_syntaxes(tmp_path, syntax):
    path = write_dicom(tmp_path/'a.dcm', RAMP[None])
    import pydicom
    ds = pydicom.dcmread(path)
    if syntax == RLELossless: ds.compress(RLELossless)
    else: ds.file_meta.TransferSyntaxUID = syntax
    ds.save_as(path, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=True, overwrite=True) if syntax != RLELossless else ds.save_as(path)
    np.testing.assert_array_equal(pixels(path), [RAMP])

def test_jpeg_in_dicom_with_color(tmp_path):
    import io
    buf = io.BytesIO()
    Image.fromarray(np.stack([RAMP]*3, -1)).save(buf, 'jpeg', quality=95)
    path = write_dicom(tmp_path/'a.dcm', np.stack([RAMP]*3, -1)[None], 'YBR_FULL_422', JPEGBaseline8Bit, encapsulate([buf.getvalue()]))
    assert np.abs(pixels(path)[0].astype(int) - RAMP).max() < 12

def test_rgb_dicom_becomes_gray_as_a_png_does(tmp_path):
    color = np.stack([RAMP, RAMP//2, 255 - RAMP], -1)
    Image.fromarray(color).save(tmp_path/'a.png')
    np.testing.assert_array_equal(pixels(write_dicom(tmp_path/'a.dcm', color[None], 'RGB'))[0], read_gray(tmp_path/'a.png'))

def test_monochrome1_is_turned_over(tmp_path):
    np.testing.assert_array_equal(pixels(write_dicom(tmp_path/'a.dcm', (255 - RAMP)[None], 'MONOCHROME1'))[0], RAMP)

@pytest.mark.parametrize('kind', ['MONOCHROME1', 'MONOCHROME2'])
def test_window_and_rescale(tmp_path, kind):
    deep = (RAMP.astype(np.uint16)*16)[None]
    path = write_dicom(tmp_path/'a.dcm', deep, kind, BitsStored=12, HighBit=11, RescaleSlope=2, RescaleIntercept=-100, WindowCenter=2000, WindowWidth=1001)
    want = np.clip((deep[0]*2. - 100 - 1999.5)/1000 + .5, 0, 1)*255       # DICOM PS3.3, C.11.2.1.2
    assert np.abs(pixels(path)[0] - (255 - want if kind == 'MONOCHROME1' else want)).max() <= 1

@pytest.mark.parametrize('more, spacing', [({}, None), (dict(PixelSpacing=[.3, .2]), (.3, .2)), (dict(SequenceOfUltrasoundRegions=[region(-.01, .02)], PixelSpacing=[9, 9]), (.1, .2)),
    (dict(SequenceOfUltrasoundRegions=[region(.01, .02), region(.03, .02)]), None), (dict(SequenceOfUltrasoundRegions=[region(.01, .02, unit=4)]), None), (dict(PixelSpacing=[0, 1]), None)])
def test_spacing(tmp_path, more, spacing):
    frame, = read_image(write_dicom(tmp_path/'a.dcm', RAMP[None], **more))
    assert frame.spacing_mm == (spacing and pytest.approx(spacing))

def test_spacing_of_enhanced_files():
    ds, group, measures = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing = [.4, .5]
    group.PixelMeasuresSequence = [measures]
    ds.SharedFunctionalGroupsSequence = [group]
    assert dicom_spacing(ds) == (.4, .5)


# what is broken or malicious

def chunk(kind, data): return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

def png_of(width, height): return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0)) + chunk(b'IDAT', zlib.compress(b'\0'*100_000)) + chunk(b'IEND', b'')

@pytest.mark.parametrize('size', [(9000, 9000), (60000, 60000), (20, 100_000), (2**31 - 1, 2**31 - 1)])
def test_bombs_are_refused_by_their_header(tmp_path, size):
    (tmp_path/'bomb.png').write_bytes(png_of(*size))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        with pytest.raises(BusiError, match=r'bomb\.png: .*too large'): pixels(tmp_path/'bomb.png')

@pytest.mark.parametrize('more', [dict(Rows=60000, Columns=60000), dict(NumberOfFrames=2_000_000)])
def test_dicom_bombs(tmp_path, more):
    with pytest.raises(BusiError, match='too large|frames, of which'): pixels(write_dicom(tmp_path/'a.dcm', RAMP[None], **more))

def test_a_deflated_dicom_is_refused(tmp_path):
    with pytest.raises(BusiError, match='deflated'): pixels(write_dicom(tmp_path/'a.dcm', np.zeros((1, 2000, 2000), np.uint8), syntax=DeflatedExplicitVRLittleEndian))

@pytest.mark.parametrize('size', [(1, 1), (15, 200), (200, 3)])
def test_too_small(tmp_path, size):
    Image.new('L', size).save(tmp_path/'a.png')
    with pytest.raises(BusiError, match='too small'): pixels(tmp_path/'a.png')
    check_shape(16, 16, 'a')

@pytest.mark.parametrize('ending', ['png', 'jpg', 'tif', 'bmp', 'dcm'])
@pytest.mark.parametrize('keep', [.02, .5, .9])
def test_truncated(tmp_path, ending, keep):
    path = tmp_path/f'a.{ending}'
    noise = np.random.default_rng(0).integers(0, 255, (80, 90)).astype(np.uint8)
    write_dicom(path, noise[None]) if ending == 'dcm' else Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:int(path.stat().st_size*keep)])
    with pytest.raises(BusiError, match=f'a.{ending}: '): pixels(path)

def test_random_damage_is_an_image_or_a_busi_error(tmp_path):
    rng, path = np.random.default_rng(0), tmp_path/'a'
    whole = [write_dicom(path, np.stack([RAMP, RAMP])).read_bytes()]
    for kind in ('png', 'tiff', 'bmp', 'jpeg'):
        Image.fromarray(RAMP).save(path, kind)
        whole.append(path.read_bytes())
    refused = 0
    for data in whole*12:
        a = bytearray(data)
        for i in rng.integers(0, min(len(a), 700), 6): a[i] = rng.integers(256)
        path.write_bytes(a)
        try:
            for p in pixels(path): assert p.dtype == np.uint8 and p.ndim == 2
        except BusiError: refused += 1
    assert refused > 10

def test_missing_decoder_is_named(tmp_path):
    from pydicom.pixels import get_decoder
    if get_decoder(JPEGLSLossless).is_available: pytest.skip('a JPEG-LS decoder is installed')
    with pytest.raises(BusiError, match='pip install pylibjpeg'): pixels(write_dicom(tmp_path/'a.dcm', RAMP[None], syntax=JPEGLSLossless, data=encapsulate([b'\xff\xd8\xff\xd9'])))

@pytest.mark.parametrize('data, words', [(b'', '0 bytes'), (b'text', 'not a picture'), (b'\0'*128 + b'DICM', 'a.x: '), (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n', 'not a picture'), (b'GIF89a', 'not a picture')])
def test_what_is_no_image(tmp_path, data, words):
    (tmp_path/'a.x').write_bytes(data)
    with pytest.raises(BusiError, match=words): pixels(tmp_path/'a.x')

def test_no_file_and_no_regular_file(tmp_path):
    with pytest.raises(BusiError, match='no such file'): pixels(tmp_path/'none.png')
    with pytest.raises(BusiError, match='not a file'): pixels(tmp_path)
    os.mkfifo(tmp_path/'pipe.png')                      # reading it would wait forever
    with pytest.raises(BusiError, match='not a file'): pixels(tmp_path/'pipe.png')
    assert find_images(tmp_path) == ([], {})

def test_a_film_cut_off_yields_what_is_whole(tmp_path):
    path = write_dicom(tmp_path/'a.dcm', np.stack([RAMP]*4))
    path.write_bytes(path.read_bytes()[:-RAMP.size*3//2])
    got = read_image(path)
    assert [next(got).index, next(got).index] == [1, 2]
    with pytest.raises(BusiError, match='damaged'): list(got)


# in memory

@pytest.mark.parametrize('image', [RAMP, RAMP[..., None], np.stack([RAMP]*3, -1), RAMP/255, RAMP.tolist(), Image.fromarray(RAMP), Image.fromarray(RAMP).convert('RGBA'), Frame('a', RAMP)], ids=lambda i: type(i).__name__)
def test_pictures_in_memory(image): np.testing.assert_array_equal(as_frame(image).pixels, RAMP)

@pytest.mark.parametrize('image, words', [(np.zeros((3, 40, 60)), 'shape'), (np.zeros(9), 'too small'), (np.zeros((1, 1)), 'too small'), (np.full((40, 40), np.nan), 'NaN'), (np.zeros((PIXELS//100, 101), bool), 'too large'),
    (None, 'too small'), ('/none.png', 'no such file'), (np.full((40, 40), 'a'), 'gray levels')], ids=str)
def test_what_is_no_picture(image, words):
    with pytest.raises(BusiError, match=words): as_frame(image)


# finding

def test_find_images(tmp_path):
    root, other = tmp_path/'root', tmp_path/'other'
    for f in (root, root/'sub', root/'.git', other): f.mkdir()
    for name in ('i10.png', 'i9.PNG', 'sub/ä ñ 中.tif', '.git/x.png', '.h.png', 'sub/.h.png'): Image.fromarray(RAMP).save(root/name)
    write_dicom(root/'sub'/'1.2.3', RAMP[None])
    (root/'a.txt').write_text('x')
    Image.fromarray(RAMP).save(other/'secret.png')
    (root/'out.png').symlink_to(other/'secret.png')
    (root/'out').symlink_to(other, target_is_directory=True)
    (root/'relative.png').symlink_to('../other/secret.png')
    (root/'loop').symlink_to(root, target_is_directory=True)
    (root/'self').symlink_to(root/'self')
    (root/'inner.png').symlink_to(root/'i10.png')
    found, refused = find_images([root, root/'i9.PNG', str(root/'*.png')])
    assert [p.name for p in found] == ['i9.PNG', 'i10.png', '1.2.3', 'ä ñ 中.tif'] or [p.name for p in found] == ['i9.PNG', 'inner.png', '1.2.3', 'ä ñ 中.tif']
    assert {p.name for p in refused} == {'out.png', 'out', 'relative.png', 'self'}
    assert all('secret' not in str(p.resolve()) for p in found)
    assert [p.name for p in find_images(root/'out.png')[0]] == ['out.png']                   # named by the user
    assert find_images(f'{root}/**/*.tif')[0] == [root/'sub'/'ä ñ 中.tif']
    assert find_images(root/'out'/'..'/'root'/'sub', skip=root/'sub')[0] == []

def test_masks_beside_their_images_are_no_images(tmp_path):
    names = ('a (1).png', 'a (1)_mask.png', 'a (1)_mask_1.png', 'lonely_mask.png', 'b.jpg', 'b_mask.png', 'face_masked.png', '_mask.png')
    for name in names: Image.fromarray(RAMP).save(tmp_path/name)
    assert {p.name for p in find_images(tmp_path)[0]} == {'a (1).png', 'lonely_mask.png', 'b.jpg', 'face_masked.png', '_mask.png'}
    assert {p.name for p in find_images(f'{tmp_path}/a*.png')[0]} == {'a (1).png'}
    assert [p.name for p in find_images([tmp_path/'a (1)_mask.png', tmp_path])[0]][0] == 'a (1)_mask.png'          # named by the user

def test_a_pattern_that_leads_out(tmp_path):
    (tmp_path/'a'/'b').mkdir(parents=True)
    Image.fromarray(RAMP).save(tmp_path/'secret.png')
    (tmp_path/'a'/'b'/'x.png').symlink_to(tmp_path/'secret.png')
    assert find_images(f'{tmp_path}/a/*/*.png')[0] == []
    with pytest.raises(BusiError, match='no file matches'): find_images(f'{tmp_path}/a/*.tif')
    with pytest.raises(BusiError, match='no such file or folder'): find_images(tmp_path/'nothing')

def test_brackets_in_a_name_are_a_name_first(tmp_path):
    Image.fromarray(RAMP).save(tmp_path/'a[1].png')
    assert find_images(tmp_path/'a[1].png')[0] == [tmp_path/'a[1].png']


# what scanners, viewers and exporters really make (issue 16)

import io
import time

from pydicom.uid import JPEG2000Lossless

from busi_unetpp.dataset import SCANS, count_scans, gray_scale, open_image, read_busi, read_mask, read_shape
from busi_unetpp.images import describe_levels, find_spacing
from busi_unetpp.preprocess import load_pair
from busi_unetpp.sources import read_dataset

NOISE = np.random.default_rng(5).integers(0, 256, (48, 64)).astype(np.uint8)

def jpeg(a, **options):
    buf = io.BytesIO()
    Image.fromarray(a).save(buf, 'jpeg', **({'quality': 95} | options))
    return buf.getvalue()

def j2k(a):
    buf = io.BytesIO()
    Image.fromarray(a).save(buf, 'jpeg2000', no_jp2=True)
    return buf.getvalue()

def frame(path): return next(iter(read_image(path)))

def oriented(path, a, tag, **options):
    im = Image.fromarray(a)
    exif = im.getexif()
    exif[0x0112] = tag
    im.save(path, exif=exif, **options)
    return path

TURNED = {1: RAMP, 2: RAMP[:, ::-1], 3: RAMP[::-1, ::-1], 4: RAMP[::-1], 5: RAMP.T, 6: np.rot90(RAMP, -1), 7: RAMP[::-1, ::-1].T, 8: np.rot90(RAMP)}

@pytest.mark.parametrize('tag', TURNED)
@pytest.mark.parametrize('ending, options', [('jpg', dict(quality=97)), ('png', {}), ('tif', {}), ('tif', dict(compression='tiff_lzw')), ('webp', dict(lossless=True))])
def test_an_orientation_is_followed_wherever_an_image_is_read(tmp_path, tag, ending, options):
    path = oriented(tmp_path/f'a.{ending}', RAMP, tag, **options)
    from PIL import ImageOps
    with open(path, 'rb') as f, Image.open(f) as im: shown = np.asarray(ImageOps.exif_transpose(im).convert('L'))    # as viewers do
    for got in (frame(path).pixels, as_frame(path).pixels, as_frame(Image.open(path)).pixels, read_gray(path)):
        assert got.shape == TURNED[tag].shape == read_shape(path)
        assert np.abs(got.astype(int) - TURNED[tag]).max() <= (14 if ending == 'jpg' else 1)
        np.testing.assert_array_equal(got, shown)

def test_an_orientation_in_a_deep_tiff_and_in_a_mask(tmp_path):
    deep = oriented(tmp_path/'deep.tif', RAMP.astype(np.uint16)*16, 6)
    assert np.abs(frame(deep).pixels.astype(int) - TURNED[6]).max() <= 1
    mask = oriented(tmp_path/'m.png', (RAMP > 200).astype(np.uint8)*255, 8)
    np.testing.assert_array_equal(read_mask(mask), TURNED[8] > 200)

def test_a_turned_image_beside_an_upright_mask_is_a_problem(tmp_path):
    for f in ('images', 'masks'): (tmp_path/'set'/f).mkdir(parents=True)
    oriented(tmp_path/'set'/'images'/'a.jpg', RAMP, 6)
    Image.fromarray((RAMP > 200).astype(np.uint8)*255).save(tmp_path/'set'/'masks'/'a.png')
    with pytest.raises(BusiError, match='the mask is 60x40, its image 40x60'): read_dataset(tmp_path/'set')
    Image.fromarray((TURNED[6] > 200).astype(np.uint8)*255).save(tmp_path/'set'/'masks'/'a.png')
    df = read_dataset(tmp_path/'set')
    assert (df.height[0], df.width[0]) == (60, 40)
    x, y = load_pair(df.image_path[0], df.mask_paths[0], 64)
    assert x[y > 0].mean() > 180 > x[y == 0].mean() + 40               # the mask lies on what is bright

@pytest.mark.parametrize('note', [b'Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\xff\xff\xff\xff', b'Exif\0\0', b'Exif\0\0MM\0*\xff\xff\xff\xff'])
def test_a_damaged_note_is_no_note(tmp_path, note):
    (tmp_path/'a.jpg').write_bytes(jpeg(RAMP, exif=note))
    assert frame(tmp_path/'a.jpg').pixels.shape == RAMP.shape == read_gray(tmp_path/'a.jpg').shape


# gray scale

@pytest.mark.parametrize('tops, bits', [((1023, 1024), 12), ((4095, 4096), 14), ((255, 256), 10), ((4000, 900), 12), ((127, 128), 8)])
def test_the_frames_of_a_dicom_film_share_the_white_that_it_states(tmp_path, tops, bits):
    film = np.stack([np.round(RAMP/255*top) for top in tops]).astype(np.uint16 if bits > 8 else np.uint8)
    frames = pixels(write_dicom(tmp_path/'a.dcm', film, BitsStored=bits, HighBit=bits - 1))
    for got, stored in zip(frames, film): assert np.abs(got - stored*(255/(2**bits - 1))).max() <= .51

@pytest.mark.parametrize('tops, white', [((1023, 1024), 4095), ((4095, 4096), 16383), ((900, 60000), 65535)])
def test_the_pages_of_a_tiff_share_one_scale(tmp_path, tops, white):
    film = [np.round(RAMP/255*top).astype(np.uint16) for top in tops]
    Image.fromarray(film[0]).save(tmp_path/'a.tif', save_all=True, append_images=[Image.fromarray(a) for a in film[1:]])
    for got, stored in zip(pixels(tmp_path/'a.tif'), film): assert np.abs(got - stored*(255/white)).max() <= .51

@pytest.mark.parametrize('scale', [1, 255])
@pytest.mark.parametrize('over', [1.0000000000000004, 1.002, 1.1, 300/255])
def test_overshoot_is_clipped(tmp_path, scale, over):
    a = RAMP/255*scale
    a[3, 4] = scale*over
    a[3, 5] = -.01*scale
    want = RAMP.copy()
    want[3, 4:6] = 255, 0
    for got in (as_frame(a), as_frame(a.astype(np.float32))): assert np.abs(got.pixels.astype(int) - want).max() <= 1
    Image.fromarray(a.astype(np.float32)).save(tmp_path/'a.tif')
    for got in (frame(tmp_path/'a.tif').pixels, read_gray(tmp_path/'a.tif')): assert np.abs(got.astype(int) - want).max() <= 1

def test_one_pixel_above_255_in_whole_numbers(tmp_path):
    a = RAMP.astype(np.int32)
    a[3, 4] = 300
    want = RAMP.copy()
    want[3, 4] = 255
    np.testing.assert_array_equal(as_frame(a).pixels, want)
    Image.fromarray(a).save(tmp_path/'a.tif')
    np.testing.assert_array_equal(frame(tmp_path/'a.tif').pixels, want)

@pytest.mark.parametrize('a', [RAMP/255*1.7, RAMP/255*9.5, np.where(RAMP == RAMP[20, 30], RAMP, RAMP/255.)], ids=['1.7', '9.5', 'mixed'])
def test_what_cannot_be_decided_is_refused(tmp_path, a):
    with pytest.raises(BusiError, match='Scale it to 0-255'): as_frame(a) if a.max() < 16 else as_frame(np.where(np.arange(a.size).reshape(a.shape) == 7, 900., RAMP/255.))
    Image.fromarray((RAMP/255*1.7).astype(np.float32)).save(tmp_path/'a.tif')
    for read in (frame, read_gray):
        with pytest.raises(BusiError, match=r'a\.tif: .*largest value is 1\.7'): read(tmp_path/'a.tif')

def test_a_single_bright_pixel_does_not_blacken_the_rest():
    a = np.kron(RAMP.astype(float), np.ones((4, 4)))
    a[3, 4] = 1000
    with pytest.raises(BusiError, match='all except 1 of its pixels are at most 255'): as_frame(a)
    with pytest.raises(BusiError, match='values reach'): as_frame(np.where(a > 20, 1e308, -1e308))

@pytest.mark.parametrize('more', [dict(WindowWidth=100), dict(WindowCenter=100), dict(VOILUTSequence=[Dataset()]), dict(WindowCenter='', WindowWidth=''), dict(ModalityLUTSequence=[Dataset()]), dict(RescaleSlope=3)])
def test_half_a_window_or_an_empty_table_is_none(tmp_path, more):
    f = frame(write_dicom(tmp_path/'a.dcm', RAMP[None], **more))
    np.testing.assert_array_equal(f.pixels, RAMP)

@pytest.mark.parametrize('center, width', [(40000, 100), (-500, 20), (100, .5), (100, 0), (100, -20), (5, 1e-300), (1e300, 5)])
def test_a_window_beside_the_pixels_is_dropped_and_named(tmp_path, center, width):
    f = frame(write_dicom(tmp_path/'a.dcm', RAMP[None], WindowCenter=center, WindowWidth=width))
    np.testing.assert_array_equal(f.pixels, RAMP)
    assert f'window (center {center:g}, width {width:g})' in f.warning

def test_the_second_of_two_windows(tmp_path):
    f = frame(write_dicom(tmp_path/'a.dcm', RAMP[None], WindowCenter=[9999, 128], WindowWidth=[10, 256]))
    assert np.abs(f.pixels.astype(int) - RAMP).max() <= 1 and '9999' in f.warning

@pytest.mark.parametrize('bad', ['nan', 'inf', '-inf', '1e308'])
@pytest.mark.parametrize('key', ['RescaleSlope', 'RescaleIntercept', 'WindowCenter', 'WindowWidth'])
def test_nan_and_infinity_in_the_header_are_never_black(tmp_path, bad, key):
    import pydicom
    more = dict(RescaleSlope='1', RescaleIntercept='0', WindowCenter='128', WindowWidth='256')
    path = write_dicom(tmp_path/'a.dcm', RAMP[None], **more)
    whole = path.read_bytes()
    tag = pydicom.datadict.tag_for_keyword(key)
    old = struct.pack('<HH', tag >> 16, tag & 0xffff) + b'DS' + struct.pack('<H', len(v := more[key] + ' '*(len(more[key]) % 2))) + v.encode()
    assert old in whole
    b = bad + ' '*(len(bad) % 2)
    path.write_bytes(whole.replace(old, old[:6] + struct.pack('<H', len(b)) + b.encode()))
    try: f = frame(path)
    except BusiError as e: assert 'NaN or infinite' in str(e) and key.startswith('Rescale')
    else: assert f.warning and np.abs(f.pixels.astype(int) - RAMP).max() <= 1

def test_flat_images_are_named(tmp_path):
    for name, a in (('flat', RAMP*0 + 9), ('few', RAMP//60)):
        Image.fromarray(a).save(tmp_path/f'{name}.png')
        assert ('flat' if name == 'flat' else 'gray levels') in frame(tmp_path/f'{name}.png').warning
        assert as_frame(a).warning
    f = frame(write_dicom(tmp_path/'a.dcm', RAMP[None], WindowCenter=128, WindowWidth=2))
    assert 'of 256 gray levels' in f.warning
    assert describe_levels(RAMP) == describe_levels(NOISE) == as_frame(RAMP).warning == ''

@pytest.mark.parametrize('top, shift', [(255, 0), (65535, 8), (65280, 8)])
def test_palettes(tmp_path, top, shift):
    levels = np.arange(256)*(top//255)
    lut = {f'{c}PaletteColorLookupTable{k}': v for c in ('Red', 'Green', 'Blue') for k, v in (('Descriptor', [256, 0, 16]), ('Data', levels[::-1].astype('<u2').tobytes()))}
    f = frame(write_dicom(tmp_path/'a.dcm', RAMP[None], 'PALETTE COLOR', **lut))
    np.testing.assert_array_equal(f.pixels, 255 - RAMP)
    im = Image.fromarray(RAMP)
    im.putpalette(np.repeat(np.arange(255, -1, -1), 3).astype(np.uint8).tobytes())
    for ending in ('png', 'tif', 'gif', 'bmp'):
        im.save(tmp_path/f'p.{ending}')
        for read in (read_gray, lambda p: frame(p).pixels): np.testing.assert_array_equal(read(tmp_path/f'p.{ending}'), 255 - RAMP)

def test_a_tiff_palette_of_8_bits(tmp_path):
    from PIL.TiffImagePlugin import ImageFileDirectory_v2
    im = Image.fromarray(RAMP)
    im.putpalette(np.repeat(np.arange(256), 3).astype(np.uint8).tobytes())
    im.save(tmp_path/'a.tif')
    data = (tmp_path/'a.tif').read_bytes()
    at = next(i for i in range(len(data) - 1536) if np.array_equal(np.frombuffer(data[i:i + 1536], '<u2')[:256]//256, np.arange(256)))
    words = np.frombuffer(data[at:at + 1536], '<u2')//256
    (tmp_path/'a.tif').write_bytes(data[:at] + words.astype('<u2').tobytes() + data[at + 1536:])
    np.testing.assert_array_equal(frame(tmp_path/'a.tif').pixels, RAMP)

@pytest.mark.parametrize('a', [RAMP, RAMP.astype(np.uint16)*257, RAMP.astype(np.uint16)*16, RAMP/np.float32(255)], ids=['8', '16', '12', 'float'])
def test_white_is_zero_is_turned_over(tmp_path, a):
    full = 1 if a.dtype.kind == 'f' else {255: 255, 65535: 65535, 4080: 4095}[int(a.max())]
    stored = (full - a).astype(a.dtype)
    Image.fromarray(stored).save(tmp_path/'a.tif')
    data = (tmp_path/'a.tif').read_bytes()
    entry = struct.pack('<HHIHH', 262, 3, 1, 1, 0)
    assert data.count(entry) == 1
    (tmp_path/'a.tif').write_bytes(data.replace(entry, struct.pack('<HHIHH', 262, 3, 1, 0, 0)))
    for got in (frame(tmp_path/'a.tif').pixels, read_gray(tmp_path/'a.tif')): assert np.abs(got.astype(int) - RAMP).max() <= 1

def test_transparency_of_deep_images(tmp_path):
    Image.fromarray(RAMP.astype(np.uint16)*257).save(tmp_path/'a.png', transparency=int(RAMP[7, 9])*257)
    want = np.where(RAMP == RAMP[7, 9], 0, RAMP)
    for got in (frame(tmp_path/'a.png').pixels, read_gray(tmp_path/'a.png')): np.testing.assert_array_equal(got, want)

def test_the_highest_bit_is_not_always_the_last(tmp_path):
    f = frame(write_dicom(tmp_path/'a.dcm', (RAMP.astype(np.uint16) << 8)[None], BitsStored=8, HighBit=15))
    np.testing.assert_array_equal(f.pixels, RAMP)
    with pytest.raises(BusiError, match='states 8 bits'): pixels(write_dicom(tmp_path/'b.dcm', (RAMP.astype(np.uint16)*16)[None], BitsStored=8, HighBit=7))

def test_a_table_of_gray_levels(tmp_path):
    item = Dataset()
    item.LUTDescriptor, item.LUTData = [256, 0, 16], np.arange(255, -1, -1).astype('<u2').tobytes()
    np.testing.assert_array_equal(frame(write_dicom(tmp_path/'a.dcm', RAMP[None], VOILUTSequence=[item])).pixels, 255 - RAMP)

def test_the_window_of_an_enhanced_file(tmp_path):
    voi, group = Dataset(), Dataset()
    voi.WindowCenter, voi.WindowWidth = 64.5, 128
    group.FrameVOILUTSequence = [voi]
    f = frame(write_dicom(tmp_path/'a.dcm', RAMP[None], SharedFunctionalGroupsSequence=[group]))
    assert np.abs(f.pixels - np.clip((RAMP.astype(float) - 64)*(255/127) + 127.5, 0, 255)).max() <= 1


# what a file states and what it holds

FILM = np.stack([RAMP, RAMP[::-1], 255 - RAMP])

@pytest.mark.parametrize('offsets', [True, False])
@pytest.mark.parametrize('stated', [None, 1, 3, 5])
def test_a_compressed_film_is_counted(tmp_path, stated, offsets):
    path = write_dicom(tmp_path/'a.dcm', FILM, syntax=JPEGBaseline8Bit, data=encapsulate([jpeg(a) for a in FILM], has_bot=offsets), **({} if stated is None else dict(NumberOfFrames=stated)))
    if stated is None:
        import pydicom
        ds = pydicom.dcmread(path)
        del ds.NumberOfFrames
        ds.save_as(path)
    frames = list(read_image(path))
    assert [str(f) for f in frames] == [f'a.dcm, frame {i} of 3' for i in (1, 2, 3)]
    for f, a in zip(frames, FILM): assert np.abs(f.pixels.astype(int) - a).max() < 14
    assert all(('holds 3' in f.warning) == (stated != 3) for f in frames)

@pytest.mark.parametrize('stated', [None, 1, 2, 3, 5])
def test_a_film_that_is_not_compressed_is_counted(tmp_path, stated):
    path = write_dicom(tmp_path/'a.dcm', FILM, **({} if stated is None else dict(NumberOfFrames=stated)))
    if stated is None: path.write_bytes(path.read_bytes().replace(b'\x28\0\x08\0IS\x02\x003 ', b''))
    frames = list(read_image(path))
    assert [(f.index, f.frames) for f in frames] == [(1, 3), (2, 3), (3, 3)]
    np.testing.assert_array_equal([f.pixels for f in frames], FILM)
    assert all(('holds 3' in f.warning) == (stated != 3) for f in frames)

def test_fragments_of_one_frame(tmp_path):
    data = jpeg(NOISE)
    pieces = b''.join(struct.pack('<HHI', 0xfffe, 0xe000, len(p)) + p for p in (b'', data[:1000], data[1000:2000], data[2000:] + b'\0'*(len(data) % 2)))
    path = write_dicom(tmp_path/'a.dcm', NOISE[None], syntax=JPEGBaseline8Bit, data=pieces + struct.pack('<HHI', 0xfffe, 0xe0dd, 0))
    f, = read_image(path)
    assert (f.frames, f.warning) == (1, '') and f.pixels.std() > 50

@pytest.mark.parametrize('n', [1, 2])
def test_three_bytes_a_pixel_where_two_are_stated(tmp_path, n):
    color = np.stack([np.stack([RAMP]*3, -1)]*n)
    with pytest.raises(BusiError, match='YBR_FULL_422 but holds three bytes'): pixels(write_dicom(tmp_path/'a.dcm', color, 'YBR_FULL_422'))

@pytest.mark.parametrize('more', [dict(Columns=40), dict(SamplesPerPixel=3, PhotometricInterpretation='RGB', PlanarConfiguration=0), dict(BitsAllocated=16, BitsStored=16, HighBit=15), dict(Rows=60)])
def test_pixels_that_do_not_fill_a_frame_are_refused(tmp_path, more):
    with pytest.raises(BusiError, match='its pixels take 2400 bytes'): pixels(write_dicom(tmp_path/'a.dcm', RAMP[None], **more))

def strip_syntax(path, data):
    import pydicom
    at = data.index(b'\x02\0\x10\0UI')
    length = 8 + struct.unpack('<H', data[at + 6:at + 8])[0]
    group = data.index(b'\x02\0\0\0UL\x04\0') + 8
    total = struct.unpack('<I', data[group:group + 4])[0] - length
    path.write_bytes(data[:group] + struct.pack('<I', total) + data[group + 4:at] + data[at + length:])
    return path

@pytest.mark.parametrize('kind', ['native', 'jpeg', 'jpeg2000'])
def test_a_missing_transfer_syntax(tmp_path, kind):
    more = {} if kind == 'native' else dict(syntax=JPEGBaseline8Bit, data=encapsulate([jpeg(RAMP)])) if kind == 'jpeg' else dict(syntax=JPEG2000Lossless, data=encapsulate([j2k(RAMP)]))
    path = write_dicom(tmp_path/'a.dcm', RAMP[None], **more)
    f = frame(strip_syntax(path, path.read_bytes()))
    assert np.abs(f.pixels.astype(int) - RAMP).max() < 14

def test_implicit_elements_where_explicit_ones_are_stated(tmp_path):
    path = write_dicom(tmp_path/'a.dcm', RAMP[None], syntax=ImplicitVRLittleEndian)
    data = path.read_bytes()
    uid, wrong = b'1.2.840.10008.1.2\0', b'1.2.840.10008.1.2.1\0'
    data = data.replace(struct.pack('<H', len(uid)) + uid, struct.pack('<H', len(wrong)) + wrong, 1)
    group = data.index(b'\x02\0\0\0UL\x04\0') + 8
    path.write_bytes(data[:group] + struct.pack('<I', struct.unpack('<I', data[group:group + 4])[0] + 2) + data[group + 4:])
    np.testing.assert_array_equal(frame(path).pixels, RAMP)

@pytest.mark.parametrize('syntax', [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize('meta', [True, False])
def test_dicom_without_its_first_132_bytes(tmp_path, syntax, meta):
    data = write_dicom(tmp_path/'x.dcm', RAMP[None], syntax=syntax).read_bytes()[132:]
    if not meta: data = data[12 + struct.unpack('<I', data[8:12])[0]:]
    (tmp_path/'a').write_bytes(data)
    np.testing.assert_array_equal(frame(tmp_path/'a').pixels, RAMP)
    assert find_images(tmp_path)[0] == [tmp_path/'a', tmp_path/'x.dcm']

def test_a_syntax_that_is_not_that_of_the_pixels(tmp_path):
    data, jpeg_uid, native_uid = write_dicom(tmp_path/'a.dcm', RAMP[None]).read_bytes(), b'1.2.840.10008.1.2.4.50', b'1.2.840.10008.1.2.1\0'
    group = data.index(b'\x02\0\0\0UL\x04\0') + 8
    data = data[:group] + struct.pack('<I', struct.unpack('<I', data[group:group + 4])[0] + 2) + data[group + 4:]
    (tmp_path/'a.dcm').write_bytes(data.replace(struct.pack('<H', len(native_uid)) + native_uid, struct.pack('<H', len(jpeg_uid)) + jpeg_uid, 1))
    f = frame(tmp_path/'a.dcm')
    np.testing.assert_array_equal(f.pixels, RAMP)
    assert 'transfer syntax' in f.warning

@pytest.mark.parametrize('more', [dict(PixelSpacing=[1, 1]), dict(SequenceOfUltrasoundRegions=[region(1, 1)]), dict(PixelSpacing=['1e308', '1e308']), dict(PixelSpacing=['1e200', '.1']), dict(PixelSpacing=['1e-9', '1e-9']), dict(PixelSpacing=[25.4, 25.4])], ids=str)
def test_implausible_spacing_is_not_used_and_said(tmp_path, more):
    f = frame(write_dicom(tmp_path/'a.dcm', RAMP[None], **more))
    assert f.spacing_mm is None and 'cannot be true and is not used' in f.warning
    np.testing.assert_array_equal(f.pixels, RAMP)

def test_tiff_pages_of_other_sizes_are_named(tmp_path):
    pages = [RAMP, RAMP[:30, :40], 255 - RAMP, RAMP[::-1]]
    Image.fromarray(pages[0]).save(tmp_path/'a.tif', save_all=True, append_images=[Image.fromarray(a) for a in pages[1:]])
    frames = list(read_image(tmp_path/'a.tif'))
    assert [f.index for f in frames] == [1, 3, 4] and all('page 2 (40 x 30)' in f.warning for f in frames)
    np.testing.assert_array_equal(as_frame(tmp_path/'a.tif', 3).pixels, pages[2])
    with pytest.raises(BusiError, match=r'no frame 2 among its frames 1, 3, 4; left out: 1 of 4 pages.*page 2 \(40 x 30\)'): as_frame(tmp_path/'a.tif', 2)
    Image.fromarray(RAMP[:20, :20]).save(tmp_path/'b.tif', save_all=True, append_images=[Image.fromarray(RAMP)])       # the thumbnail first
    f, = read_image(tmp_path/'b.tif')
    np.testing.assert_array_equal(f.pixels, RAMP)


# the cause is found, not guessed from words

def test_a_truncated_jpeg_in_dicom_needs_no_decoder(tmp_path):
    for cut in (.3, .6, .9):
        data = jpeg(NOISE)
        path = write_dicom(tmp_path/'a.dcm', NOISE[None], syntax=JPEGBaseline8Bit, data=encapsulate([data[:int(len(data)*cut)]]))
        with pytest.raises(BusiError, match='truncated or damaged') as e: pixels(path)
        assert 'pip install' not in str(e.value)

@pytest.mark.parametrize('uid, words', [('1.2.840.10008.1.2.4.100', 'MPEG2'), ('1.2.840.10008.1.2.4.102', 'MPEG-4'), ('1.2.840.10008.1.2.4.103', 'MPEG-4'), ('1.2.840.10008.1.2.4.107', 'HEVC'), ('1.2.840.10008.1.2.4.108', 'HEVC')])
def test_videos_are_named(tmp_path, uid, words):
    with pytest.raises(BusiError, match=f'a video .*{words}') as e: pixels(write_dicom(tmp_path/'a.dcm', RAMP[None], syntax=uid, data=encapsulate([bytes(500)])))
    assert 'damaged' not in str(e.value) and 'pip install' not in str(e.value)

def test_an_unknown_compression_is_named(tmp_path):
    with pytest.raises(BusiError, match='is not known here'): pixels(write_dicom(tmp_path/'a.dcm', RAMP[None], syntax='1.2.840.10008.1.2.4.94', data=encapsulate([bytes(500)])))

def long_png(path, kind, a=RAMP):
    "A PNG with 2 MB of something that is no pixel, before or behind them."
    whole = io.BytesIO()
    Image.fromarray(a).save(whole, 'png')
    whole, noise = whole.getvalue(), np.random.default_rng(0).bytes(2**20).hex().encode('latin-1')
    extra = dict(icc=(b'iCCP', b'x\0\0' + zlib.compress(bytes(2**21))), text=(b'tEXt', b'x\0' + noise*40), ztext=(b'zTXt', b'x\0\0' + zlib.compress(noise)), itext=(b'iTXt', b'x\0\1\0\0\0' + zlib.compress(noise)),
        after=(b'zTXt', b'x\0\0' + zlib.compress(noise)))[kind]
    at = whole.rindex(b'IEND') - 4 if kind == 'after' else 33
    path.write_bytes(whole[:at] + chunk(*extra) + whole[at:])
    return path

@pytest.mark.parametrize('kind', ['icc', 'text', 'ztext', 'itext', 'after'])
def test_a_long_profile_or_text_is_no_damage(tmp_path, kind):
    path = long_png(tmp_path/'a.png', kind)
    for got in (frame(path).pixels, read_gray(path)): np.testing.assert_array_equal(got, RAMP)
    np.testing.assert_array_equal(read_mask(long_png(tmp_path/'m.png', kind, (RAMP > 99).astype(np.uint8)*255)), RAMP > 99)
    assert read_shape(path) == RAMP.shape and open_image(path).size == (60, 40)

def test_pictures_that_are_broken_in_memory(tmp_path):
    Image.fromarray(NOISE).save(tmp_path/'a.png')
    (tmp_path/'a.png').write_bytes((tmp_path/'a.png').read_bytes()[:2000])
    with pytest.raises(BusiError, match='image: truncated or damaged'): as_frame(Image.open(tmp_path/'a.png'))
    for thing in (b'x', bytearray(9), io.BytesIO(b'x')):
        with pytest.raises(BusiError, match='which is no picture. Hand over a path'): as_frame(thing)

def test_a_set_without_normal_says_that_an_empty_folder_is_enough(tmp_path):
    for label in ('benign', 'malignant'): (tmp_path/label).mkdir()
    for read in (read_busi, lambda p: read_dataset(p, layout='BUSI')):
        with pytest.raises(BusiError, match='lacks normal: an empty folder of that name is enough'): read(tmp_path)
    (tmp_path/'normal').mkdir()
    Image.fromarray(RAMP).save(tmp_path/'benign'/'benign (1).png')
    Image.fromarray((RAMP > 99).astype(np.uint8)*255).save(tmp_path/'benign'/'benign (1)_mask.png')
    assert len(read_busi(tmp_path)) == 1

def busi_with(root, data, name='benign (1).png'):
    for label in ('normal', 'benign', 'malignant'): (root/label).mkdir(parents=True)
    (root/'benign'/name).write_bytes(data)
    Image.fromarray((RAMP > 99).astype(np.uint8)*255).save(root/'benign'/name.replace('.png', '_mask.png'))
    return root

def test_a_fault_names_its_file_once(tmp_path):
    root = busi_with(tmp_path, b'no image')
    with pytest.raises(BusiError) as e: read_busi(root)
    assert str(e.value).count('benign (1).png') == 1


# limits are one rule, and bombs

@pytest.mark.parametrize('size, words', [((13000, 13000), 'too large'), ((9000, 9000), 'too large'), ((20, 100_000), 'too large'), ((1, 1), 'too small'), ((15, 40), 'too small')])
def test_a_dataset_has_the_limits_of_predict(tmp_path, size, words):
    data = io.BytesIO()
    Image.new('L', size).save(data, 'png') if size[0]*size[1] < 1000 else data.write(png_of(*size))
    (tmp_path/'a.png').write_bytes(data.getvalue())
    for read in (frame, as_frame, *([read_gray, open_image] if words == 'too large' else [])):
        with pytest.raises(BusiError, match=words): read(tmp_path/'a.png')
    with pytest.raises(BusiError, match=words): read_busi(busi_with(tmp_path/'set', data.getvalue()))

def many_scans(n):
    "A progressive JPEG that passes over its image n times more."
    data = jpeg(NOISE, progressive=True, quality=60)
    last = data.rindex(b'\xff\xda')
    return data[:last] + data[last:-2]*n + b'\xff\xd9'

def test_a_jpeg_of_many_passes_is_refused(tmp_path):
    assert count_scans(jpeg(NOISE)) == 1 and 1 < count_scans(jpeg(NOISE, progressive=True)) < 20
    data, small = many_scans(2000), 2*SCANS
    assert count_scans(data) > 2000
    (tmp_path/'a.jpg').write_bytes(data)
    (tmp_path/'a.png').write_bytes(data)
    dcm = write_dicom(tmp_path/'a.dcm', NOISE[None], syntax=JPEGBaseline8Bit, data=encapsulate([data + b'\0'*(len(data) % 2)]))
    began = time.monotonic()
    for read in (lambda: frame(tmp_path/'a.jpg'), lambda: read_gray(tmp_path/'a.png'), lambda: frame(dcm), lambda: read_busi(busi_with(tmp_path/'set', data))):
        with pytest.raises(BusiError, match='passes'): read()
    assert time.monotonic() - began < 20
    (tmp_path/'b.jpg').write_bytes(jpeg(NOISE, progressive=True, exif=b'Exif\0\0' + b'\xff\xda'*9000))     # bytes that only look like passes
    assert frame(tmp_path/'b.jpg').pixels.shape == NOISE.shape

@pytest.mark.parametrize('syntax, encode', [(JPEGBaseline8Bit, jpeg), (JPEG2000Lossless, j2k)])
def test_a_compressed_picture_larger_than_stated_is_refused_undecoded(tmp_path, syntax, encode):
    path = write_dicom(tmp_path/'a.dcm', RAMP[None], syntax=syntax, data=encapsulate([encode(np.zeros((2000, 3000), np.uint8))]))
    with pytest.raises(BusiError, match='states 60 x 40 pixels .* has 3000 x 2000'): pixels(path)
    path = write_dicom(tmp_path/'b.dcm', RAMP[None], syntax=syntax, data=encapsulate([encode(np.stack([RAMP]*3, -1))]))
    with pytest.raises(BusiError, match='of 1 sample.* of 3'): pixels(path)

def test_an_rle_bomb(tmp_path):
    data = struct.pack('<16I', 1, 64, *[0]*14) + b'\x81\0'*500_000
    with pytest.raises(BusiError, match='larger than its picture'): pixels(write_dicom(tmp_path/'a.dcm', RAMP[None], syntax=RLELossless, data=encapsulate([data])))

def tiff_of(n):
    "A TIFF of n pages that share their pixels."
    pages, size = [], 8 + RAMP.size
    for i in range(n):
        at = size + i*(2 + 12*8 + 4)
        tags = ((256, 60), (257, 40), (258, 8), (259, 1), (262, 1), (273, 8), (278, 40), (279, RAMP.size))
        pages.append(struct.pack('<H', 8) + b''.join(struct.pack('<HHII', k, 4, 1, v) for k, v in tags) + struct.pack('<I', at + 102 if i < n - 1 else 0))
    return struct.pack('<2sHI', b'II', 42, size) + RAMP.tobytes() + b''.join(pages)

def test_a_tiff_of_too_many_pages(tmp_path):
    (tmp_path/'a.tif').write_bytes(tiff_of(3))
    np.testing.assert_array_equal(pixels(tmp_path/'a.tif'), [RAMP]*3)
    (tmp_path/'b.tif').write_bytes(tiff_of(20_000))
    began = time.monotonic()
    with pytest.raises(BusiError, match='more than 10000 frames'): frame(tmp_path/'b.tif')
    assert time.monotonic() - began < 30

def test_no_other_program_is_started(tmp_path, monkeypatch):
    import subprocess
    for name in ('Popen', 'run', 'check_call', 'call'): monkeypatch.setattr(subprocess, name, lambda *a, **k: pytest.fail('a program was started'))
    data = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 60 40\n%%EndComments\nshowpage\n'
    (tmp_path/'a.png').write_bytes(data)
    for read in (frame, read_gray, read_mask, open_image):
        with pytest.raises(BusiError, match=r'a\.png: not a'): read(tmp_path/'a.png')
    with pytest.raises(BusiError, match='not an image'): read_busi(busi_with(tmp_path/'set', data))

@pytest.mark.parametrize('kind', ['pipe', 'device'])
def test_pipes_and_devices_are_no_files(tmp_path, kind):
    path = tmp_path/'pipe.png'
    os.mkfifo(path) if kind == 'pipe' else path.symlink_to('/dev/zero')
    for read in (read_gray, read_mask, open_image):
        with pytest.raises(BusiError, match='a pipe or a device'): read(path)
    with pytest.raises(BusiError, match='not a file'): frame(path)
    assert find_images(path) == ([], {path: 'a pipe or a device, not a file'})

def test_what_is_read_stays_bounded_in_memory(tmp_path):
    import tracemalloc
    Image.fromarray(np.zeros((6000, 6000), np.uint16)).save(tmp_path/'a.png')
    tracemalloc.start()
    frame(tmp_path/'a.png')
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 600e6

def test_a_jpeg_of_8_bits_where_16_are_stated(tmp_path):
    f = frame(write_dicom(tmp_path/'a.dcm', RAMP[None].astype(np.uint16), syntax=JPEGBaseline8Bit, data=encapsulate([jpeg(RAMP)])))
    assert np.abs(f.pixels.astype(int) - RAMP).max() < 14 and 'states 16 bits' in f.warning

def test_12_bits_where_16_are_stated_are_dark_and_said(tmp_path):
    f = frame(write_dicom(tmp_path/'a.dcm', RAMP[None].astype(np.uint16)*16))
    assert f.pixels.max() == 16 and 'so that it is dark' in f.warning

def test_a_tiff_that_pillow_does_not_know(tmp_path):
    data = tiff_of(1).replace(struct.pack('<HHII', 258, 4, 1, 8), struct.pack('<HHII', 258, 4, 1, 64))
    (tmp_path/'a.tif').write_bytes(data)
    with pytest.raises(BusiError, match='a TIFF of a kind that is not read here'): frame(tmp_path/'a.tif')

from pydicom.uid import ExplicitVRBigEndian

def test_more_ways_of_storing_the_same(tmp_path):
    deep = RAMP.astype(np.uint16)*16
    cases = [write_dicom(tmp_path/'big', deep[None], BitsStored=12, HighBit=11, syntax=ExplicitVRBigEndian, data=deep.astype('>u2').tobytes()),
        write_dicom(tmp_path/'signed', (deep.astype(np.int16) - 2048).view(np.uint16)[None], BitsStored=12, HighBit=11, PixelRepresentation=1),
        write_dicom(tmp_path/'short', ((deep.astype(np.int16) - 2048) & 4095).astype(np.uint16)[None], BitsStored=12, HighBit=11, PixelRepresentation=1),
        write_dicom(tmp_path/'ybr', np.stack([RAMP, RAMP*0 + 128, RAMP*0 + 128], -1)[None], 'YBR_FULL'),
        write_dicom(tmp_path/'planes', np.stack([RAMP]*3, -1)[None], 'RGB', PlanarConfiguration=1, data=np.stack([RAMP]*3).tobytes()),
        write_dicom(tmp_path/'pairs', np.stack([RAMP]*3, -1)[None], 'YBR_FULL_422', data=np.stack([RAMP[:, ::2], RAMP[:, 1::2], RAMP[:, ::2]*0 + 128, RAMP[:, ::2]*0 + 128], -1).tobytes()),
        write_dicom(tmp_path/'turned', RAMP[None], RescaleSlope=-1, RescaleIntercept=255, PhotometricInterpretation='MONOCHROME1'),
        write_dicom(tmp_path/'slope', RAMP[None], RescaleSlope=0, RescaleIntercept=5),
        write_dicom(tmp_path/'kind', RAMP[None], PhotometricInterpretation='')]
    for path in cases: assert np.abs(frame(path).pixels.astype(int) - RAMP).max() <= 1, path

def test_an_overlay_in_the_unused_bits(tmp_path):
    stored = RAMP.astype(np.uint16)*16 | np.where(RAMP > 99, 1 << 15, 0).astype(np.uint16)
    path = write_dicom(tmp_path/'a.dcm', stored[None], BitsStored=12, HighBit=11)
    with pytest.raises(BusiError, match='states 12 bits'): frame(path)
    import pydicom
    ds = pydicom.dcmread(path)
    ds.add_new(0x60000100, 'US', 16)
    ds.add_new(0x60000102, 'US', 15)
    ds.save_as(path)
    assert np.abs(frame(path).pixels.astype(int) - RAMP).max() <= 1
