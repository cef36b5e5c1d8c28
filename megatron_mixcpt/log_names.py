"""Names of the curves that training writes and the report reads."""

STUDENT_LOSS = "ntp loss"
TEACHER_LOSS = "teacher ntp loss"
