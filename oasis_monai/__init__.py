"""Atlas-based medical image segmentation with one-pass alignment (OASIS), on MONAI."""

__version__ = "0.1.0"
