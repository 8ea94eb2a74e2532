"""memtunnel: warm, verified TLS connections to hosted memcached, shared by all local clients."""

__version__ = "0.1.0"
