# SPDX-License-Identifier: Apache-2.0
# The layout check and the proof that each of its rules can fail.
add_test(NAME layout COMMAND Python3::Interpreter ${CMAKE_CURRENT_SOURCE_DIR}/layout_check.py ${PROJECT_SOURCE_DIR})
add_test(NAME layout.can_fail COMMAND Python3::Interpreter ${CMAKE_CURRENT_SOURCE_DIR}/layout_check_test.py)
set_tests_properties(layout layout.can_fail PROPERTIES LABELS layout ENVIRONMENT PYTHONDONTWRITEBYTECODE=1)
