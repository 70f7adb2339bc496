"""``python -m slimse``, and ``torchrun -m slimse train`` on several machines."""

from .cli import app

if __name__ == "__main__":
    app(prog_name="slimse")
