"""What a run of pytest that judges checkpoints is asked for, shares and divides."""
