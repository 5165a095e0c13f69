"""The parts of tools/inspect: what lies in a data directory; how each kind of file is read, checked, set aside."""
