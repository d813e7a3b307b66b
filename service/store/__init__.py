"""What is on disk: blobs in a folder, the catalogue and the job table in SQL. Only the server process writes here."""
