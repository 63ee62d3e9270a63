"""Files and hub data sets become one table of answers with labels, pairs and ranked lists.

    read     raw records with their place in the file
    messages messages, content parts and transcripts
    formats  record formats: found by their columns, each parsed by one function
    load     all records of a source joined into an `AnswerTable`
    grade    labels and vote keys from reference answers
    split    fit and test parts that share no prompt

No torch anywhere below this package.
"""
