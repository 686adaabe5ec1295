"""``python -m umbel.cli`` and ``torchrun -m umbel.cli``."""

from umbel.cli.main import run

if __name__ == "__main__":
    run()
