"""A model as one file: a tar archive in OCI's image layout; each variant is a manifest, a config and a GGUF layer.

    tar.py        headers of members, written and read; pure
    archive.py    an archive that somebody has sent: where each member lies; nothing is ever unpacked by its name
    oci.py        index, manifests, descriptors; which media types are what
    packing.py    variants of the catalogue -> the members of a bundle, the same bytes each time
    reading.py    an archive -> the variants in it

Server process. The bytes of the GGUF files are not looked at here: a job's child does that.
"""
