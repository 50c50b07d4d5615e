"""The study `truthfulness`: whether truth is a direction that reads and steers other stages, too."""
