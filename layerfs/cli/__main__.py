"""``python -m layerfs.cli``: what the installed ``layerfs`` does, from where it is not installed."""

from layerfs.cli import run

run()
