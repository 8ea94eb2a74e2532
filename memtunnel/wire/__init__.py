"""What bytes mean: the memcache binary protocol and SASL PLAIN, with no I/O and no clock."""
