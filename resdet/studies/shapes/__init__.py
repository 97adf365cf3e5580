"""The embedded world: data sets that are drawn, not downloaded."""
