"""One file per noun; each has a ``router`` whose routes state their scope."""
