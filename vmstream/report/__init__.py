"""What users see: the JSON contract, and its rendering for people."""
