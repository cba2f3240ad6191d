"""The engine of batches: find cases, run each whole or not at all, and show the results on a page."""
