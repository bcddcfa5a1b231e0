"""`xml`: what a libvirt save image says of the domain."""

from __future__ import annotations

from vmstream.container.layers import Container
from vmstream.errors import OutputError


def domain_xml(container: Container, name: str, *, cookie: bool = False) -> bytes:
    """Return the domain XML as it stands in the image, or libvirt's cookie.

    Args:
        container: What is around the stream.
        name: Of the input, for messages.
        cookie: The cookie instead.

    Raises:
        OutputError: There is none.
    """
    image = container.layers[-1].image if container.layers else None
    if image is None:
        raise OutputError(f"{name} is no libvirt save image: there is no domain XML in it")
    if not cookie:
        return image.xml
    if image.cookie is None:
        raise OutputError(f"{name} has no cookie")
    return image.cookie
