"""What is around the stream: save images, snapshots and compressed files, found by content."""
