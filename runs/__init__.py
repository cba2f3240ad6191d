"""What every run needs: files, memory, records, tables, checks, exit codes, cells and workers."""
