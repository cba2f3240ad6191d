"""Parts shared by all runs: files, memory, records, tables, checks, exit codes, cells and workers."""
