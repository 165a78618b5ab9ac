"""Codecs: bytes to domain types and back, without I/O.

One package a protocol; :mod:`tidegate.protocols.statuses` says what an error looks like on
each transport, :mod:`tidegate.protocols.grpc_frames` how a gRPC message lies in a body.
"""
