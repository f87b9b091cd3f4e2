"""The kernel, thin and typed: one function a system call, :class:`OSError` with the path."""
