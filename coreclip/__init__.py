"""coreclip: data-efficient training of compact image-text models."""

__version__ = "0.1.0"
