"""The processes of one installation: the supervisor, the content workers and the admin process."""
