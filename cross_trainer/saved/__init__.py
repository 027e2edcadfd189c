"""What a model's folder says, read and written."""
