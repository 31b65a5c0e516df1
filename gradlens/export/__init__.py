"""Export runs for other programs: tidy tables as CSV and Parquet, and TensorBoard events.

Everything is written in chunks of rows, so memory does not grow with the run. The libraries that write Parquet and
events are optional, and are imported inside the functions that need them.
"""

from gradlens.export.csvfile import write_csv
from gradlens.export.parquet import write_parquet
from gradlens.export.tables import distinct, held_metrics, make_table
from gradlens.export.tensorboard_events import write_events
from gradlens.export.write import STDOUT, Wanted, Written, make_rows, make_wanted, write_runs

__all__ = [
    "STDOUT",
    "Wanted",
    "Written",
    "distinct",
    "held_metrics",
    "make_rows",
    "make_table",
    "make_wanted",
    "write_csv",
    "write_events",
    "write_parquet",
    "write_runs",
]
