"""A whole tunnel in one seeded simulation; `world` says what is in it, `__main__` how to run it."""
