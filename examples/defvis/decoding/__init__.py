"""Pictures and video files to RGB, as they are shown."""
