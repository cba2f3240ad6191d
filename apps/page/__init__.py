"""Style sheet and script that the report and the page of a batch share."""
