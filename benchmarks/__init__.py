"""What the project's results are measured with, and other designs and readers to compare with."""
