"""The engine of batches: find cases, process each completely or not at all, and show the results on a page."""
