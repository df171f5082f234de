# Fails when an object that is compiled for an instruction set holds code with weak linkage: the
# linker could keep that copy for all CPUs. cmake -DNM=... -DOBJECTS=a.o;b.o -P check_linkage.cmake
set(checked 0)
foreach(object IN LISTS OBJECTS)
  if(NOT object MATCHES "src/kernels/(avx|neon)")
    continue()
  endif()
  execute_process(COMMAND "${NM}" -C --defined-only "${object}"
    OUTPUT_VARIABLE symbols COMMAND_ERROR_IS_FATAL ANY)
  string(REGEX MATCHALL "[^\n]* [WVu] [^\n]*" weak "${symbols}")
  # What sanitizers and exception tables add has no instructions of the kernels.
  list(FILTER weak EXCLUDE REGEX "asan|ubsan|DW\\.ref")
  if(weak)
    list(JOIN weak "\n" weak)
    message(FATAL_ERROR "${object}: symbols with weak linkage, move them to an unnamed namespace:\n${weak}")
  endif()
  math(EXPR checked "${checked} + 1")
endforeach()
if(checked EQUAL 0)
  message(FATAL_ERROR "no object of src/kernels/avx* or src/kernels/neon was checked")
endif()
