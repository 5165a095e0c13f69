"""Command line tools. The executables in this folder are thin; the modules beside them do the work."""
