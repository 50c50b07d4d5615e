"""The study `refusal`: is refusing one direction in the stream, and is it the same one in every stage?"""
