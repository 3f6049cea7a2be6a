"""What can be added to the plain cross-entropy of masked positions: one file each."""
