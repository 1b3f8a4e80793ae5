"""Many trials of one recipe: grids, searches, workers, results."""
