"""Layers in directories that overlayfs can stack, whoever does the stacking: see ``driver.py``."""
