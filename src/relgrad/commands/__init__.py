"""The command line, one file a group of commands.

cli.py             the commands and their options
endings.py         messages and exit codes
printing.py        figures, samples and films on a terminal
processes.py       relgrad run in several processes
jobs.py            relgrad submit and relgrad jobs
estimate.py        what relgrad run --dry-run shows
compare.py         relgrad compare
bar.py             the progress bar of commands that evaluate
films.py           writing in several steps, for `relgrad sample`
original_flags.py  --key=value, as the originals write settings
sample_options.py  the options of `relgrad sample` that kinds of policies declare
masked_data.py     relgrad prepare and relgrad inspect-batch
forms.py           relgrad forms
site_pages.py      relgrad forms check and export
replies.py         relgrad split
search.py          relgrad search
sharing.py         relgrad merge and relgrad push
workflow.py        relgrad workflow
rewards.py         relgrad rewards
doctor.py          relgrad doctor
"""
