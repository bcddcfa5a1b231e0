"""What the events mean: RAM blocks, the pages they have, and where they stand in the guest."""
