"""The command line: one verb per file. Each only parses and prints; the work is done in the library."""
