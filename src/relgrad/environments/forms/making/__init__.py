"""Forms: drawn from a family and a seed, and worded.

families.py, families.yaml  families of web forms: fields, options, splits
values.py                   values to enter, none in two splits
grammar.py                  how hard a form is
form.py                     one form, as data
generate.py                 forms drawn, and made again from plain data
wording.py                  a form's prompt and its reference plan
"""
