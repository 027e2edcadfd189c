"""What is trained on what: losses, the plan, the Trainer."""
