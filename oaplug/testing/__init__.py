"""Contract checks and toy data for plugin authors."""
