"""Tables of the study `trace`."""
