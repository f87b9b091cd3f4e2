"""The union of layer directories: the merge rules, in plain synchronous Python. See docs/union.md."""
