"""Makes Volatility 3 load the layer: it imports what is in `volatility3/plugins`.

The wheel puts this file there. A Volatility that stands elsewhere (a checkout of its sources) is
given the directory that it lands in: `vol -p DIRECTORY`.
"""

from vmstream.integrations.volatility3 import PageTableStacker, StreamLayer, StreamStacker

__all__ = ["PageTableStacker", "StreamLayer", "StreamStacker"]
