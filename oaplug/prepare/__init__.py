"""Raw dataset to preprocessed volumes: reading, geometry, fingerprint, plan, splits, integrity."""
