"""What keeps avatars secret at rest: the files of keys, the key of every avatar, and the sealed file."""
