"""The benchmark harness: what drivers and other engines cost, side by side, on this host.

``subjects`` and ``peers`` are who is measured, each a small class; ``workloads`` what they do, one function
each; ``images`` what they do it with; ``clock`` and ``flushes`` measure; ``runner`` lets them take turns
until the time is over and refuses who did other work; ``figures`` are the statistics, ``report`` and
``plots`` what a person looks at. See docs/benchmarks/README.md."""
