"""meshd and the programs that it is measured against, behind one small interface."""
