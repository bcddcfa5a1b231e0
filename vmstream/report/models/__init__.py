"""The JSON contract: dataclasses that `docs/schema/*.json` is generated from, by command.

Offsets, lengths and addresses are bytes. Within a major number of a schema, fields are only
added. A name from the stream that is not plain UTF-8 comes twice: readable, and in full as
base64 beside it. Nothing is imported here: making a dataclass takes 0.4 ms, and there are 120.
"""
