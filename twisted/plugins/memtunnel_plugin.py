"""Tells `twistd` of ``twistd memtunnel``."""

from twisted.application.service import ServiceMaker

memtunnel = ServiceMaker(
    "memtunnel",
    "memtunnel.service",
    "Warm, verified TLS connections to hosted memcached, shared by all local clients.",
    "memtunnel",
)
