"""What a release is made and checked with. None of it is in the wheel."""
