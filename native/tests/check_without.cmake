# Fails when a test's objects call what it is to do without, or when the core's own do not, so that
# nothing would be checked. cmake -DNM=... -DCALLS=regex -DWITHOUT=a.o;b.o -DCORE=a.o;b.o -P check_without.cmake
function(calls objects found)
  set(${found} "" PARENT_SCOPE)
  execute_process(COMMAND "${NM}" --undefined-only ${objects}
    OUTPUT_VARIABLE symbols COMMAND_ERROR_IS_FATAL ANY)
  string(REGEX MATCHALL " U (${CALLS})(@[^\n]*)?\n" matched "${symbols}")
  set(${found} "${matched}" PARENT_SCOPE)
endfunction()

list(FILTER CORE INCLUDE REGEX "src/platform/")
calls("${WITHOUT}" forbidden)
calls("${CORE}" used)
if(forbidden)
  message(FATAL_ERROR "still called: ${forbidden}")
endif()
if(NOT used)
  message(FATAL_ERROR "the core itself calls none of ${CALLS}: nothing was checked")
endif()
