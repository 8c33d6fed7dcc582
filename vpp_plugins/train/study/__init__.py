"""A fair ablation in one command, `vpp study`: arms x seeds over one recipe, trained, evaluated and compared.

- `study.py`: the file, and what is refused in it; `runs.py`: its parts, where they lie, and whether they are done;
  `run.py`: running them, killable at any point.
- `hits.py`: what every run found, expression by expression, small enough to commit; `statistics.py`: how sure that is;
  `report.py`: the report.
"""

from vpp_plugins.train.study.report import write_study_report
from vpp_plugins.train.study.run import run_study
from vpp_plugins.train.study.runs import plan
from vpp_plugins.train.study.study import Study, StudySet

__all__ = ["Study", "StudySet", "plan", "run_study", "write_study_report"]
