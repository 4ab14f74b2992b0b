"""Preprocessed volumes to batches: sampling, loading, augmentation."""
