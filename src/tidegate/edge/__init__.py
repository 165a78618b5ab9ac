"""The edge: one Envoy process, configured as typed Python over Envoy's own control protocol.

Read :mod:`~tidegate.edge.topology` (what a controller says), :mod:`~tidegate.edge.resources`
(what Envoy is told), :mod:`~tidegate.edge.ads` (in which order) and
:mod:`~tidegate.edge.process` (the life of the process).
"""
