"""The numbers that tell training's random draws apart: the ``stream`` of :func:`coreclip.randomness.hash64`, all of them.

A stream is never used for two things, and never changes its number: both would change what a seed means.
"""

PROBE_VALIDATION = 171
"""Which labelled images a linear probe keeps back to choose its regularisation."""
SHOTS = 172
"""Which images of a class a few-shot probe learns from; the epoch is the draw."""
JEST = 300
"""Rows by learnability: each chunk of a batch has its own stream, up to 555."""
POOL = 560
"""The pairs among which a run chooses anew; the epoch is the pass."""
RESELECTION = 561
"""The seed of a choice within a run."""
PROMPTS = 700
"""Which prompt a step names the classes in."""
TOWERS = 701
"""The seed of torch's own draws in a step; the index is the process."""
WORDS = 702
"""Which words of a caption are left out in a step."""
TOPICS = 703
"""Vectors of captions without a known word."""
