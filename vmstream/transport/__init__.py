"""Sources and sinks: the only place with file descriptors."""
