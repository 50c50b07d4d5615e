"""The study `refusal`: whether refusing is one direction in the stream, and the same one in every stage."""
