"""Packaging: every value that can be dynamic comes from settings.ini, the version from `busi_unetpp/__init__.py`."""
import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup
from setuptools.command.sdist import sdist

HERE = Path(__file__).parent
config = ConfigParser()
config.read(HERE/'settings.ini', encoding='utf-8')
cfg = config['DEFAULT']
version = re.search(r'__version__\s*=\s*"([^"]+)"', (HERE/cfg['lib_path']/'__init__.py').read_text(encoding='utf-8')).group(1)
statuses = ['Planning', 'Pre-Alpha', 'Alpha', 'Beta', 'Production/Stable', 'Mature', 'Inactive']

class SdistWithSettings(sdist):
    "A source archive that can be built again needs settings.ini, which setuptools does not pick up by itself."
    def make_distribution(self):
        self.filelist.append('settings.ini')
        super().make_distribution()

setup(
    cmdclass={'sdist': SdistWithSettings},
    version=version,
    author=cfg['author'], author_email=cfg['author_email'],
    license=cfg['license'],
    keywords=cfg['keywords'].split(),
    classifiers=[
        f"Development Status :: {cfg['status']} - {statuses[int(cfg['status']) - 1]}",
        f"Intended Audience :: {cfg['audience']}",
        'Programming Language :: Python :: 3 :: Only',
        'Topic :: Scientific/Engineering :: Medical Science Apps.',
    ],
    long_description=(HERE/'README.md').read_text(encoding='utf-8'), long_description_content_type='text/markdown',
    packages=[cfg['lib_path']], package_data={cfg['lib_path']: ['*.csv', 'models/*.safetensors']},
    install_requires=cfg['requirements'].split(),
    extras_require={extra: cfg[f'{extra}_requirements'].split() for extra in ('dev', 'kaggle', 'encoder', 'export', 'zoo')},
    entry_points={'console_scripts': cfg['console_scripts'].split(),
                  'nbdev': [f"{cfg['lib_path']}={cfg['lib_path']}._modidx:d"]},
)
