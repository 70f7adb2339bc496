"""A page in the browser to hear a model, and the server behind it; ``pip install '.[serve]'``."""
