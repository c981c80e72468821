# SPDX-License-Identifier: Apache-2.0
# Compiles SOURCE with COMPILER and FLAGS and holds the outcome against what the file's comments say:
#   // expect: SENTENCE   it is refused and the compiler's output holds SENTENCE, word for word; may stand several times;
#                         SENTENCE | SENTENCE where compilers name the same thing in different words
#   // flags: FLAG ...    further flags for this file
# Without an expect line the file must compile. ONLY replaces -fsyntax-only for a compiler that does not know it.
function(fail what)
  message(NOTICE "${SOURCE}: ${what}")  # a notice is not re-wrapped, so that tests can look for the sentence
  message(FATAL_ERROR "compile case failed")
endfunction()

file(STRINGS ${SOURCE} lines REGEX "^// (expect|flags): ")
set(sentences "")
set(extra "")
foreach(line IN LISTS lines)
  if(line MATCHES "^// expect: (.*)$")
    string(REPLACE ";" "\\;" sentence "${CMAKE_MATCH_1}")
    list(APPEND sentences "${sentence}")
  elseif(line MATCHES "^// flags: (.*)$")
    separate_arguments(extra UNIX_COMMAND "${CMAKE_MATCH_1}")
  endif()
endforeach()

if(NOT DEFINED ONLY)
  set(ONLY -fsyntax-only)
endif()
execute_process(COMMAND ${COMPILER} -std=c++20 ${FLAGS} ${extra} ${ONLY} ${SOURCE}
                RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
if(NOT sentences)
  if(NOT result EQUAL 0)
    fail("must compile, but was refused:\n${output}")
  endif()
  return()
endif()
if(result EQUAL 0)
  fail("compiled, but must be refused")
endif()
foreach(sentence IN LISTS sentences)
  string(REPLACE ";" "\\;" wordings "${sentence}")
  string(REPLACE " | " ";" wordings "${wordings}")
  set(found FALSE)
  foreach(wording IN LISTS wordings)
    string(FIND "${output}" "${wording}" at)
    if(at GREATER -1)
      set(found TRUE)
    endif()
  endforeach()
  if(NOT found)
    fail("refused, but without \"${sentence}\":\n${output}")
  endif()
  message(STATUS "refused: ${sentence}")
endforeach()
