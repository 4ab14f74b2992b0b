"""3D augmentation: parameters are drawn per case from a counter-based generator, then applied to a batch."""
