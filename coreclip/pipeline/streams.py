"""The numbers that tell a loader's random draws apart: the ``stream`` of :func:`coreclip.randomness.hash64`, all of them.

A stream is never used for two things, and never changes its number: both would change what a seed means.
"""

ORDER = 1
"""The epoch's shuffled order; the key is the position."""
CAPTION = 2
"""Which caption of a pair."""
BLOCK_ORDER = 3
"""The order of the blocks of a quasi-random epoch; the key is the block."""
OCCURRENCE = 4
"""The key of a pair that comes a second time in a subset, and a third."""
OPERATIONS = 5
"""Seeds of FFCV operations; the key is the position."""
DRAW_ORDER = 6
"""The order in which positions are drawn by weight."""
DRAW_OFFSET = 7
"""Where drawing by weight begins; one number an epoch."""
CROP = 16
"""Random resized crops: each of ten tries takes four streams, up to 55."""
FLIP = 56
JITTER = 57
"""Brightness, contrast, saturation and hue; 61 is their order."""
JITTER_ORDER = 61
GREY = 62
CUTOUT = 63
"""Left and top of the square."""
SHIFT = 65
"""Shifts of resident images, across and down."""
