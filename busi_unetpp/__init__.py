"""U-Net++ for tumor segmentation in breast ultrasound (BUSI): the paper implemented, explained and honestly measured

Modules:

- `busi_unetpp.dataset`: Read BUSI from disk, count it, and look at it before any model does."""

__version__ = "0.1.0"
