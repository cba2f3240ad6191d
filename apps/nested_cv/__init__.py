"""The engine of nested cross-validation: plan, fits, search, results, report."""
