"""How many files Envoy may open, against how many endpoints there are."""

from __future__ import annotations

import resource

_EACH = 2
"""A connection for calls, and one for checks of its health or for the caller."""
REMEDY = (
    "raise the hard limit of open files: 'ulimit -Hn NUMBER' as root before the start, "
    "LimitNOFILE= in a unit of systemd, --ulimit nofile=NUMBER for a container"
)


def short_of_files(endpoints: int) -> str | None:
    """Say why so many endpoints are too many for the limit of this process, if they are.

    Envoy ends when it may open no more. Its limit is the hard one, to which it is raised.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or _EACH * endpoints <= hard:
        return None
    return (
        f"{endpoints} endpoints take {_EACH * endpoints} open files or more, and a process may "
        f"have {hard}: Envoy may run out of them and end"
    )
