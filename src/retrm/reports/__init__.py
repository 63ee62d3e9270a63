"""What a person looks at: pictures as PNG files, and the page of an audit.

`canvas` holds the drawing basics, `spectrum` and `best_of_n` draw what the command line and the demo
measure; the `audit_*` files draw and write the report of `retrm audit` from its tables and nothing
else.
"""
