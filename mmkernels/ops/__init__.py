"""What users call: checks, autocast, and the few lines of mathematics around each streamed reduction."""
