"""Layers as tar streams: reading, writing, applying, comparing, and giving back byte for byte."""
