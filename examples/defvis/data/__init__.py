"""YouTube-VIS data: reading it, drawing clips from it, and writing the digits dataset."""
