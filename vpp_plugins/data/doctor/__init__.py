"""`vpp doctor`: examine a data set, and show what is wrong with it."""

from vpp_plugins.data.doctor.doctor import examine
from vpp_plugins.data.doctor.page import write_doctor_page

__all__ = ["examine", "write_doctor_page"]
