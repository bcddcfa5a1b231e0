"""What is around a stream: containers, found by content."""
