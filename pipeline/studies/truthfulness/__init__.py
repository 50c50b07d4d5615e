"""The study `truthfulness`: is truth a direction, and does one stage's direction read and steer another stage?"""
