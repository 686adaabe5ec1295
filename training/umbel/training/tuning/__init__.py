"""Training the backbone's own tensors: all, some layers, by pattern. ``tune.py`` is the door.

``own.py`` makes the copy that is trained, ``derived.py`` what comes out of it; rows, passes, losses, the loop and
checkpoints are those of adapters.
"""
