"""memtunnel beside what else there is, under the same load: `make bench`.

Shapes of load go to one contender at a time, in rounds that are interleaved, so that whatever
else the machine does meets all of them. Ratios within a round are the result.
"""
