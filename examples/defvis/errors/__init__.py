"""What kinds of errors results have, object by object: counted, in words, as a page."""
