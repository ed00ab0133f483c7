"""U-Net++ for tumor segmentation in breast ultrasound (BUSI): the paper implemented, explained and honestly measured

Modules:

- `busi_unetpp.dataset`: Read BUSI from disk, count it, and look at it before any model does.
- `busi_unetpp.fetch`: Get BUSI onto the disk, whole and checked, or say exactly what to do instead.
- `busi_unetpp.manifest`: Tell whether a copy of BUSI is the published one, file by file.
- `busi_unetpp.phantom`: Simulate breast ultrasound from its physics, so that everything in this book runs without a download.
- `busi_unetpp.site`: Build these pages, and check them, with or without Quarto."""

__version__ = "0.1.0"
