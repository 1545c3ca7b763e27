"""The core: pure. No I/O, no clock, no randomness, no logging; the drivers bring the outside in."""
