"""Bytes to events. Sans-IO: nothing here opens, reads or writes anything."""
