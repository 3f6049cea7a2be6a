"""How others do it: kept to be compared with, never a default."""
