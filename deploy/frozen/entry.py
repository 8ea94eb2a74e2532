"""Where the frozen program begins."""

from memtunnel.__main__ import main

main()
