"""Models compared on the same cases: gather their predictions, run analyses, write the report."""
