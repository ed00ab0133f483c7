"Every picture of the book and of a run: the book's background, the page's width, text that can be read, a caption."
import base64
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib import rcParams
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from busi_unetpp.figures import BACKGROUND, WIDTH, make_figure, show_images, styled

ROOT = Path(__file__).parents[1]
CARD = tuple(round(255*c) for c in to_rgb(BACKGROUND))


def drawn(png):
    "Was it drawn by matplotlib? A picture of pixels has no axes and no card."
    return Image.open(io.BytesIO(base64.b64decode(png))).info.get('Software', '').startswith('Matplotlib')


def pictures():
    for path in sorted((ROOT/'nbs').glob('[0-9]*.ipynb')):
        for i, cell in enumerate(json.loads(path.read_text(encoding='utf-8'))['cells']):
            for o in cell.get('outputs', []):
                if 'image/png' in o.get('data', {}) and drawn(''.join(o['data']['image/png'])): yield pytest.param(''.join(cell['source']), ''.join(o['data']['image/png']), id=f'{path.stem}-{i}')


@pytest.mark.parametrize('source, png', pictures())
def test_picture_of_a_chapter_has_the_style_and_a_caption(source, png):
    im = Image.open(io.BytesIO(base64.b64decode(png))).convert('RGBA')
    corners = {im.getpixel((x, y)) for x in (0, im.width - 1) for y in (0, im.height - 1)}
    assert corners == {(*CARD, 255)}, 'not in the style: `use_style()`, `make_figure` or `@styled` of busi_unetpp.figures'
    assert '#| fig-cap: ' in source, 'no caption'


def history():
    e = np.arange(5)
    return pd.DataFrame(dict(epoch=e, train_loss=.9 - .1*e, valid_loss=.8 - .05*e, iou=.5 + .05*e, tumor_dice=.1*e))


def scores():
    return pd.DataFrame(dict(image=['benign/a.png', 'normal/b.png'], label=['benign', 'normal'], tp=[9, 0], fp=[1, 0], fn=[2, 0], tn=[88, 100], dice=[.85, 1.]))


def figures():
    from busi_unetpp import assess, compare, learner, meanings, report
    images, masks = np.full((2, 32, 32), 90, np.uint8), np.zeros((2, 32, 32), np.uint8)
    masks[0, 8:20, 8:20] = 1
    runs = pd.DataFrame([dict(run=r, metric=m, images=9, value=.6, low=.5, high=.7, p=p) for r, p in (('a', np.nan), ('b', .01)) for m in compare.SHOWN])
    return {'plot_curves': report.plot_curves(history(), 3, .46), 'plot_dice': report.plot_dice(scores()), 'plot_cases': report.plot_cases(images, masks, masks*.9, scores(), [0, 1]),
        'preview_figure': learner.preview_figure(images, masks, masks*.9, 'a batch'), 'plot_compare': compare.plot_compare(runs),
        'plot_meanings': meanings.plot_meanings(pd.DataFrame(dict(name=['two classes, pooled', 'tumor, pooled'], value=[.8, .6]))), 'plot_two_class': meanings.plot_two_class(),
        'plot_calibration': assess.plot_calibration(assess.calibrate({'test': masks*.9}, {'test': masks})[1]),
        'make_figure': make_figure(), 'show_images': show_images(list(images), ['one', 'two'])}


def test_figures_of_the_package_have_the_style_and_leave_no_trace():
    before = dict(rcParams)
    for name, fig in figures().items():
        assert np.allclose(fig.get_facecolor(), (*to_rgb(BACKGROUND), 1)), name
        assert fig.get_figwidth() <= WIDTH, name
        fig.draw_without_rendering()
        small = {t.get_text(): t.get_fontsize() for t in fig.findobj(Text) if t.get_visible() and t.get_text().strip() and t.get_fontsize() < 7.5}
        assert not small, (name, small)
        for ax in fig.axes:
            assert not ax.axison or (ax.get_xlabel() and (ax.get_ylabel() or name in ('plot_compare', 'plot_meanings'))) or name == 'make_figure', f'{name}: an axis without a label'
    assert dict(rcParams) == before


def test_the_check_of_the_style_can_fail():
    plain = Figure(figsize=(14, 3))
    assert plain.get_figwidth() > WIDTH and not np.allclose(plain.get_facecolor(), (*to_rgb(BACKGROUND), 1))


def test_settings_come_back_after_an_error():
    before = dict(rcParams)
    with pytest.raises(ZeroDivisionError): styled(lambda: 1/0)()
    assert dict(rcParams) == before


def test_importing_changes_no_settings():
    code = 'import matplotlib as m; before = dict(m.rcParams); import busi_unetpp.figures, busi_unetpp.preprocess; assert dict(m.rcParams) == before'
    subprocess.run([sys.executable, '-c', code], check=True)


def test_names_are_no_formulas():
    import numpy as np
    from busi_unetpp.figures import make_figure, show_images, styled
    show_images([np.zeros((9, 9), np.uint8)], ['$x^^y$'])
    @styled
    def plot():
        fig = make_figure()
        ax = fig.axes[0]
        ax.plot([1, 1000], [1, 1000], label=r'$\frac{$')
        ax.set(xscale='log', xlabel='$^^$', title='$a_$')
        ax.legend()
        fig.suptitle('$$^')
        return fig
    fig = plot()
    fig.draw_without_rendering()
    assert '$' in fig.axes[0].get_xticklabels()[0].get_text() and fig.axes[0].get_xticklabels()[0].get_parse_math()       # powers of ten stay formulas
