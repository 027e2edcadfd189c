"""What a row is, from any source to a batch."""
