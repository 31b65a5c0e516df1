"""Export runs for other programs: tidy tables as CSV and Parquet, and TensorBoard events.

Everything is written in chunks of rows, so memory does not grow with the run. The libraries that write Parquet and
events are optional, and are imported inside the functions that need them.
"""

from gradlens.export.csvfile import write_csv
from gradlens.export.destinations import default_place, whole_file, whole_folder
from gradlens.export.optional_libraries import check_library
from gradlens.export.parquet import write_parquet
from gradlens.export.tables import distinct, held_metrics, make_table
from gradlens.export.tensorboard_events import write_events

__all__ = [
    "check_library",
    "default_place",
    "distinct",
    "held_metrics",
    "make_table",
    "whole_file",
    "whole_folder",
    "write_csv",
    "write_events",
    "write_parquet",
]
