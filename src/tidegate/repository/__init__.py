"""The model repository: what lies in the folder, what it is, and when it has changed."""
