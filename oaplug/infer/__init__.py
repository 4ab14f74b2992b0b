"""Model folder + raw images to predictions."""
