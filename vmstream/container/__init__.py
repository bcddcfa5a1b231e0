"""What is around the stream: save images and compressed files, taken off layer by layer."""
