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
