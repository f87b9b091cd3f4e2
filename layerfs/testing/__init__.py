"""For people who write drivers, and for their tests: a conformance suite, a model, strategies, a fake.

``conformance``
    :class:`~layerfs.testing.conformance.DriverConformance`: subclass it, open your driver, run pytest.
``model``
    What layers mean, without a file system.
``entries``, ``strategies``
    Layers written by hand; layers made by Hypothesis.
``memory``
    A driver that keeps layers in memory, for tests of what stands upon drivers.

Nothing outside of tests imports this package.
"""
