"""What lets other programs read streams; each takes a library that an extra installs."""
