"""A model as one file: a tar archive in OCI's image layout.

Each variant, importance matrix and adapter is a manifest of one GGUF file, with a config that says the rest.

    tar.py        headers of members, written and read; pure
    archive.py    an archive that somebody has sent: where each member lies; nothing is ever unpacked by its name
    oci.py        index, manifests, descriptors; which media types are what
    gathering.py  what of the store belongs in a bundle
    packing.py    that -> the members of a bundle, the same bytes each time
    reading.py    an archive -> the files in it, and what is said of them

Server process. The bytes of the GGUF files are not looked at here: a job's child does that.
"""
