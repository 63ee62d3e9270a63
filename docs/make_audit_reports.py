"""Write verdicts, pictures and pages of the committed audits again, from their tables by today's code.

Run it as `python docs/make_audit_reports.py`, after a change of the rules or of the pictures. No figure
of a table changes.
"""

from pathlib import Path

from make_audit_results import RESULTS, judged

from retrm.reports.audit_page import write_report


def remake(results: Path = RESULTS) -> list[str]:
    """The names of the audits that were written again."""
    folders = sorted(path.parent for path in results.glob("audit/*/audit.json"))
    for folder in folders:
        tables = judged(folder)
        tables.save(folder)
        write_report(folder, tables)
    return [folder.name for folder in folders]


if __name__ == "__main__":
    remake()
