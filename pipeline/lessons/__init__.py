"""What a finished run can teach."""
