"""From the public post to the files one runs: what was shown of each link, and what was not.

    comparison    two identities -> equal, renumbered, rounded, or different, with bounds
    link chain    what is known of the source: origin, torrent, digests, an earlier certificate
    certificate   all of it as one record, and the lines that people read
    record        the record beside the output: sealed JSON, read again by `moetool verify`
    statement     the same as an in-toto statement
    signature     a signature over an output, through the model-signing package

What a certificate proves, and what it does not: docs/explanation/certificate.md.
"""
