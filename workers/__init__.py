"""The processes of minitrue: broker, bridge, storage, query. Workers import common, never each other."""
