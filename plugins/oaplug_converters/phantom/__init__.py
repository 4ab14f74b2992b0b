"""A knee phantom: parametric knees whose anatomy follows a known severity, for tests and demonstrations."""
