"""Other ways to read the same captchas, each as its authors wrote it, measured like ours."""
