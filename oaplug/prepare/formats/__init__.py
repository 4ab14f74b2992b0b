"""Image files of several formats: what their headers say, and their voxels as they are stored."""
