"""Work that is handed in now and fetched later: kept by the node that accepted it."""
