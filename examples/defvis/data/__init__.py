"""YouTube-VIS data: reading it and drawing clips from it."""
