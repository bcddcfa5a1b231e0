"""The command line: options, one call into `ops`, one into `report`, the exit status."""
