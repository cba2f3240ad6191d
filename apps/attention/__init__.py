"""Commands on what attention does."""
